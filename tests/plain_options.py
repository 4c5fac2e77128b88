"""How tests train where they do not say: one plain update of each network per step, whatever the loss."""

from training.recipes import Options, options

PLAIN = {"batch_size": 8, "lr": 2e-3, "lr_critic": 4e-3, "n_critic": 1, "lambda_gp": 10.0, "gp_every": 1, "path_length": 0.0}


def plain_options(loss="wgan-gp", **changes) -> Options:
    return options("thin", loss, **(PLAIN | changes))
