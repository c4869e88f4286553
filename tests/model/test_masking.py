import pytest
import torch

from cavmae_sync_hf.model.masking_cavmae_sync import gather_patches, random_masking, removed_part, structured_noise


def test_random_masking__keeps_the_smallest_noise():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    masking = random_masking(noise, 0.5)
    assert masking.ids_keep.tolist() == [[1, 3]]
    assert masking.mask.tolist() == [[1, 0, 1, 0]]


def test_random_masking__ids_restore_undo_the_shuffle():
    noise, tokens = torch.rand(3, 10), torch.randn(3, 10, 4)
    masking = random_masking(noise, 0.7)
    kept = gather_patches(tokens, masking.ids_keep)
    removed = torch.zeros(3, 7, 4)
    restored = gather_patches(torch.cat([kept, removed], dim=1), masking.ids_restore)
    visible = (masking.mask == 0).unsqueeze(-1)
    assert torch.equal(restored, tokens * visible)


@pytest.mark.parametrize(("patches", "kept"), [(208, 52), (196, 49), (512, 128)])
def test_random_masking__keeps_the_published_counts(patches, kept):
    assert random_masking(torch.rand(1, patches), 0.75).ids_keep.shape[1] == kept


@pytest.mark.parametrize("columns", [26, 64, 6])
def test_structured_noise__removes_whole_columns_or_rows(columns):
    noise, grid = torch.rand(4, 8 * columns), (8, columns)
    by_time = random_masking(structured_noise(noise, grid, 0.75, "time"), 0.75).mask.unflatten(1, grid)
    by_mel = random_masking(structured_noise(noise, grid, 0.75, "frequency"), 0.75).mask.unflatten(1, grid)
    assert (by_time.min(dim=1).values.sum(dim=1) >= int(columns * 0.75)).all()
    assert (by_mel.min(dim=2).values.sum(dim=1) >= 6).all()
    both = structured_noise(noise, grid, 0.75, "time_frequency").unflatten(1, grid) > 1
    assert (both.all(dim=1).sum(dim=1) == int(columns * 0.75 * 0.7)).all()
    assert (both.all(dim=2).sum(dim=1) == int(8 * 0.75 * 0.7)).all()


def test_structured_noise__chooses_columns_evenly():
    torch.manual_seed(0)
    masks = structured_noise(torch.rand(4000, 32), (4, 8), 0.5, "time").unflatten(1, (4, 8)) > 1
    # Each of 8 columns is removed with probability 1/2: 4000 draws have a standard deviation of 0.8 %.
    assert (masks[:, 0].float().mean(dim=0) - 0.5).abs().max() < 0.04


def test_removed_part__is_any_of_the_removed_patches_alike():
    torch.manual_seed(0)
    masking = random_masking(torch.rand(4000, 12), 0.75)
    picked = removed_part(masking, 0.5)
    assert picked.shape == (4000, 5) and all(len(set(row)) == 5 for row in picked[:50].tolist())
    assert masking.mask.gather(1, picked).all()
    # Every patch is removed in 3 of 4 samples, and then picked in 5 of 9.
    share = torch.zeros(4000, 12).scatter(1, picked, 1.0).mean(dim=0)
    assert (share - 0.75 * 5 / 9).abs().max() < 0.04
    assert removed_part(masking, 0.0).sort(dim=1).values.tolist()[0] == masking.mask[0].nonzero().flatten().tolist()
    assert (
        removed_part(masking, 0.99).shape == (4000, 1)
        and removed_part(random_masking(torch.rand(2, 4), 0), 0.5).numel() == 0
    )
