import pytest
import torch
from whole_pass import ar_pass, diffusion_pass

from ddcap.model.features import ImageFeatures
from ddcap.model.layers import recompute_blocks
from ddcap.model.loading import load_model


@pytest.mark.parametrize("folder", ["tiny_model_folder", "tiny_ar_folder"])
def test_the_gradient_is_the_same_and_less_is_kept(folder, request):
    gradients, kept = [], []
    for recomputes in (False, True):
        model = load_model(request.getfixturevalue(folder)).train()
        if recomputes:
            recompute_blocks(model)
        torch.manual_seed(0)
        encoder = model.encoder
        memory = torch.randn(2, encoder.memory_positions, encoder.memory_width)
        features = ImageFeatures(memory, torch.randn(2, encoder.summary_width))
        tokens, positions = torch.randint(50, (4, 6)), torch.arange(24)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if model.kind == "diffusion":
                lengths, timestep = torch.tensor([6, 5, 6, 4]), torch.tensor([1, 2, 3, 4])
                logits = diffusion_pass(
                    model, tokens, timestep, lengths, features, positions=positions
                ).logits
            else:
                logits = ar_pass(model, tokens, features, positions=positions)
        logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        kept.append(sum(sizes))
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert kept[1] < kept[0]


def test_a_trainable_clip_recomputes_too(tiny_model_folder):
    model = load_model(tiny_model_folder)
    recompute_blocks(model)
    assert not model.encoder.network.is_activation_checkpointing  # it is frozen
    model.encoder.requires_grad_(True)
    recompute_blocks(model)
    assert model.encoder.network.is_activation_checkpointing
