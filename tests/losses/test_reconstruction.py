import torch

from mavil.losses.reconstruction import masked_mse, normalise_patches


def test_against_a_slow_double_loop() -> None:
    torch.manual_seed(0)
    predictions, patches = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    is_masked = torch.rand(3, 5) > 0.4
    total, count = 0.0, 0
    for clip in range(3):
        for token in range(5):
            if not is_masked[clip, token]:
                continue
            values = patches[clip, token]
            mean = float(sum(values)) / 7
            variance = float(sum((v - mean) ** 2 for v in values)) / 6
            target = [(float(v) - mean) / (variance + 1e-6) ** 0.5 for v in values]
            errors = [(float(p) - t) ** 2 for p, t in zip(predictions[clip, token], target, strict=True)]
            total += sum(errors) / 7
            count += 1
    loss = masked_mse(predictions, normalise_patches(patches), is_masked)
    torch.testing.assert_close(loss.double(), torch.tensor(total / count).double(), rtol=1e-6, atol=1e-6)


def test_closed_forms() -> None:
    targets = torch.randn(2, 4, 6)
    is_masked = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert masked_mse(targets, targets, is_masked) == 0
    torch.testing.assert_close(masked_mse(targets + 2, targets, is_masked), torch.tensor(4.0))


def test_no_gradient_on_visible_predictions() -> None:
    predictions = torch.randn(2, 4, 6, requires_grad=True)
    is_masked = torch.tensor([[True, False, True, True], [False, True, False, False]])
    masked_mse(predictions, torch.randn(2, 4, 6), is_masked).backward()
    assert predictions.grad is not None
    assert not predictions.grad[~is_masked].any()
    assert predictions.grad[is_masked].all()


def test_constant_patches_become_zero() -> None:
    assert not normalise_patches(torch.full((1, 2, 8), 3.5)).any()
