"""Entry point of `accelerate launch -m trl_credit.evaluation ...`: `trl-credit eval` in several processes."""

from .cli import main


if __name__ == "__main__":
    main()
