"""What networks take and give, translated to log-SNR.

A network's time is 1000 u(lambda) for our own, and a timestep of ADM's own
schedule for its published weights; `timesteps` says which.
"""

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


def classifier(network, *, timesteps, logsnr_min, logsnr_max):
  """Make a function of log-SNR of a noisy classifier.

  Args:
    network: (z, time [B]) -> logits [B, K].
    timesteps: see `denoiser`.
    logsnr_min: see `denoiser`.
    logsnr_max: see `denoiser`.

  Returns:
    (z [B, ...], logsnr [B]) -> logits [B, K].
  """

  def logits(z, logsnr):
    if timesteps == "uniform":
      time = 1000.0 * diffusion.u_of_logsnr(
        logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max
      )
    else:
      schedule = timesteps.removeprefix("adm_")
      time = guided_diffusion.timestep_of_logsnr(logsnr, schedule)
    return network(z, time)

  return logits
