"""Samplers of image models as policies: an SDE step is a token, with a log-prob of its own.

`schedule` has the steps' distributions, `pipelines` runs diffusers pipelines and repeats their denoiser calls, `policy`
wraps a denoiser as TRL's trainer expects a model. diffusers is imported only when a pipeline is loaded.
"""
