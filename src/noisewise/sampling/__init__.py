"""Images from a denoiser and a scheduler, each from its own seed."""
