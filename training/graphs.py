"""The updates of a step as one CUDA graph, in place of one or two thousand launches that a GPU waits for at low resolutions.

    update = GraphedUpdates()
    terms = train_step(state, step, batch, update)

After "whole-network capture" in PyTorch's notes on CUDA graphs. No GPU has run this yet, so that train.py does without;
`python -m tools.gpu_check --part 2` compares both.
"""

from collections import Counter

import torch

from training.step import PATH_LENGTH_EVERY, Batch, update_networks

WARM_UP = 2  # steps of a variant before its capture, in which cuDNN looks for the fastest kernels and Adam makes its moments


def variant(state, step, batch):
    """What Python decides in `update_networks`, a tuple: steps of one variant do the same operations, on other numbers.

    None: a step that is not captured, since new blocks of the critic fade in (their weight is a number of Python's), activations
    are recorded, or other processes take part.
    """
    recipe = state.recipe
    if state.critic.fade is not None or state.activations.active or state.processes.size > 1:
        return None
    path_length = recipe.path_length > 0 and step % (recipe.n_critic * PATH_LENGTH_EVERY) == 0
    return step % recipe.n_critic == 0, step % recipe.gp_every == 0, path_length, batch.held_out is not None


class GraphedUpdates:
    """`step.update_networks` on a GPU, captured once for each variant of a TrainingState's steps and replayed from then on."""

    def __init__(self):
        self.state = None

    def __call__(self, state, step, batch):
        if state is not self.state:  # at the start, and in a new stage or back at a checkpoint, where graphs would move old weights
            self.state, self.captured, self.warmed_up = state, {}, Counter()
            self.stream, self.pool = torch.cuda.Stream(state.rng.device), torch.cuda.graph_pool_handle()
        outer = torch.cuda.current_stream(state.rng.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            terms = self.update(step, batch, variant(state, step, batch))
        outer.wait_stream(self.stream)
        return terms

    def update(self, step, batch, key):
        """The terms of a step of the variant `key`; they belong to the caller, while the graph's own change with the next step."""
        if key is None or self.warmed_up[key] < WARM_UP:
            self.warmed_up[key] += 1
            return update_networks(self.state, step, batch)
        if key not in self.captured:
            self.captured[key] = self.capture(step, batch)
        graph, inputs, terms = self.captured[key]
        for old, new in zip(inputs, batch):
            if old is not None:
                old.copy_(new)
        graph.replay()
        return {name: term.clone() for name, term in terms.items()}

    def capture(self, step, batch):
        """(the graph, the Batch that it reads, the terms that it writes); nothing is computed yet."""
        state, graph = self.state, torch.cuda.CUDAGraph()
        graph.register_generator_state(state.rng)
        inputs = Batch(*(None if x is None else x.clone() for x in batch))
        groups = [optimizer.param_groups[0] for optimizer in (state.critic_optimizer, state.model_optimizer)]
        for group in groups:
            group["capturable"] = True  # else Adam refuses; the fused kernel is the same
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):  # others may load slices
            terms = update_networks(state, step, inputs)
        for group in groups:
            group["capturable"] = False  # else Adam warns in the steps that are not captured
        return graph, inputs, terms
