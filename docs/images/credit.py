"""Draws README's picture: one completion of the embedded model, its tokens coloured by the share of the advantage they get.

python docs/images/credit.py     # writes docs/images/credit.svg; needs trl-credit[analysis]
"""

from pathlib import Path

from matplotlib import rcParams
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from trl_credit.inspection.scoring import Completion, CreditScorer
from trl_credit.methods.compose import labelled
from trl_credit.model_files import embedded_model_path


PROMPT, COMPLETION = "83+48+14=", "83+48=134;134+14=148;#148"
METHODS = {"GRPO": "uniform", "GCPO": {"method": "gcpo", "negative_prompt": "!{prompt}"}}
COLOURS = LinearSegmentedColormap.from_list("credit", ["#ffffff", "#fbe3d3", "#e07b39", "#b3471b"])
HIGHEST = 3.2  # GCPO's largest weight with its defaults


def main() -> None:
    scorer = CreditScorer(embedded_model_path(), labelled(list(METHODS.values())))
    (record,) = scorer.score([Completion(prompt=PROMPT, text=COMPLETION, advantage=-1.0, reward=0.0)])
    tokens = [token if token.strip() else "␣" for token in record.tokens]
    rcParams["svg.fonttype"] = "none"  # text stays text
    rcParams["svg.hashsalt"] = "credit"
    figure = Figure(figsize=(9.6, 1.75))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(-3.1, len(tokens) + 0.2)
    axis.set_ylim(-0.55, 2.75)
    axis.axis("off")
    style = {"ha": "center", "va": "center", "family": "monospace"}
    axis.text(
        -0.25, 2.45, f"{PROMPT}  →  reward 0, advantage A = -1", ha="left", va="center", fontsize=11, color="#4d5763"
    )
    for row, label in enumerate(METHODS):
        y = 1.35 - 1.15 * row
        axis.text(-0.75, y, label, ha="right", va="center", fontsize=12, weight="bold", color="#1c2126")
        weights = record.weights[list(record.weights)[row]]
        for place, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
            share = min(float(weight) / HIGHEST, 1.0)
            box = FancyBboxPatch(
                (place - 0.42, y - 0.42), 0.84, 0.84, boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=COLOURS(share), edgecolor="#d3d8dd", linewidth=0.6,
            )  # fmt: skip
            axis.add_patch(box)
            ink = "#ffffff" if share > 0.55 else "#1c2126"
            shown = token if len(token) < 4 else "end"
            axis.text(place, y + 0.08, shown, fontsize=11 if len(shown) < 2 else 7, color=ink, **style)
            axis.text(place, y - 0.29, f"{weight:.1f}", fontsize=6.5, color=ink, **style)
    path = Path(__file__).with_suffix(".svg")
    figure.savefig(path, metadata={"Date": None})
    # matplotlib leaves spaces at the ends of lines
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


if __name__ == "__main__":
    main()
