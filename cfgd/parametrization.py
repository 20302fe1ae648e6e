"""A DenoiseFn from a network, by what the network takes and gives."""

from cfgd import diffusion
from cfgd.convert import guided_diffusion


def denoiser(network, *, timesteps, logsnr_min, logsnr_max):
  """Make a DenoiseFn of a network.

  Args:
    network: (z, time [B], label [B]) -> [B, H, W, C] eps, or 2C channels with
      ADM's learned sigma.
    timesteps: "uniform" for our own networks, "adm_cosine" or "adm_linear" for
      guided-diffusion's, whose time is a timestep of that schedule.
    logsnr_min: lower end of our schedule, of "uniform" alone.
    logsnr_max: upper end.

  Returns:
    (z, logsnr, label) -> diffusion.Prediction.
  """
  if timesteps == "uniform":
    return diffusion.denoiser(
      network, logsnr_min=logsnr_min, logsnr_max=logsnr_max
    )
  return guided_diffusion.denoiser(network, timesteps.removeprefix("adm_"))
