"""How tests train where they do not say: one plain update of each network per step, whatever the loss."""

from training.recipes import RECIPES, Options, Recipe

PLAIN = {"batch_size": 8, "lr": 2e-3, "lr_critic": 4e-3, "n_critic": 1, "lambda_gp": 10.0, "gp_every": 1, "path_length": 0.0}


def plain_options(loss="wgan-gp", augment="none", mirror=False, grad_accum=1, seed=0, **numbers) -> Options:
    """Options with these switches, and with these numbers of a recipe in place of PLAIN ones."""
    recipe: Recipe = RECIPES["thin", loss]._replace(**PLAIN | numbers)
    return Options(loss, recipe, augment, mirror, grad_accum, seed)
