"""Brain masks: the networks behind their interface, and what is measured of a mask."""

import json

import nibabel as nib
import numpy as np
import pytest

from mrmill.config import Deface, MaskQuality
from mrmill.masks import MaskerError, make_masker
from mrmill.masks.quality import largest_component, measure_mask, outside_limits
from mrmill.volumes import Volume

# a brain of 1.4 L in a field of 216 x 240 x 200 mm
SHAPE, SPACING_MM = (54, 60, 50), 4.0
VOXEL_ML = SPACING_MM**3 / 1000


def ball(centre=(27, 30, 27), radii=(17, 21, 14.5)):
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1


def outside(mask):
    """Names of the measures that are out of the default limits."""
    quality = measure_mask(mask, largest_component(mask), VOXEL_ML) | {"beyond_plane_ml": 0.0}
    return {found.split()[0] for found, _ in outside_limits(quality, MaskQuality())}


def test_a_good_mask_is_inside_all_limits():
    assert outside(ball()) == set()


def test_a_brain_cut_off_by_the_lower_border_is_inside_all_limits():
    mask = ball()[:, :, 18:]  # a thick slab that starts in the temporal lobes
    quality = measure_mask(mask, mask, VOXEL_ML) | {"beyond_plane_ml": 0.0}
    assert quality["border_share"] > 0.05
    assert outside_limits(quality, MaskQuality()) == []


@pytest.mark.parametrize(
    ("what", "mask", "measure"),
    [
        ("almost empty", ball(radii=(4, 4, 4)), "brain_ml"),
        ("whole field", np.ones(SHAPE, bool), "border_share"),
        ("two blobs", ball((13, 30, 27), (10, 20, 20)) | ball((41, 30, 27), (10, 20, 18)),
         "largest_component"),
        ("84 mm too low", ball((27, 30, 6)), "centroid_offset"),
        ("neck only", ball((27, 30, 3), (8, 8, 12)), "brain_ml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_mask_is_outside_a_limit(what, mask, measure):
    assert measure in outside(mask), what


def test_measures_of_a_box_are_what_a_ruler_says():
    mask = np.zeros((10, 20, 30), bool)
    mask[0:4, 5:15, 10:20] = True  # 400 voxels, 100 of them on the border
    mask[8, 18, 28] = True
    quality = measure_mask(mask, largest_component(mask), voxel_ml=0.5)
    n_border = 10 * 20 * 30 - 8 * 18 * 28
    assert quality["brain_ml"] == 200.5
    assert quality["largest_component"] == pytest.approx(400 / 401, abs=1e-4)
    assert quality["border_share"] == pytest.approx(100 / n_border, abs=1e-4)
    centroid = (400 * 1.5 + 8) / 401
    assert quality["centroid_offset"] == pytest.approx((4.5 - centroid) / 10, abs=1e-4)


def test_a_device_that_is_not_there_is_an_error_and_no_run_on_the_cpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(MaskerError, match=r"deface\.device is cuda.*device: cpu"):
        make_masker(Deface(backend="deepbet", device="cuda"), threads=1)


@pytest.fixture(scope="module")
def scan():
    """A coarse T1w scan of the phantom, with its true brain mask."""
    from mrmill.phantom import scan_preset

    return next(scan_preset("tiny")).scans[0]


@pytest.fixture(scope="module")
def deepbet():
    return make_masker(Deface(backend="deepbet", device="cpu"), threads=1)


@pytest.mark.slow
def test_deepbet_finds_the_brain_whatever_the_order_of_voxel_axes(deepbet, scan):
    mask = deepbet(Volume(scan.voxels, scan.affine))
    assert mask.dtype == np.uint8
    assert mask.shape == scan.voxels.shape
    overlap = 2 * (mask & scan.brain).sum() / (int(mask.sum()) + int(scan.brain.sum()))
    assert overlap > 0.95

    turn = np.array([[2, 1], [0, -1], [1, 1]])  # old axis -> new axis and direction
    voxels = nib.orientations.apply_orientation(scan.voxels, turn)
    back = nib.orientations.inv_ornt_aff(turn, scan.voxels.shape)
    turned = deepbet(Volume(voxels, scan.affine @ back))
    np.testing.assert_array_equal(turned, nib.orientations.apply_orientation(mask, turn))


def test_deepbet_gives_an_empty_mask_where_there_is_no_brain(deepbet):
    nothing = np.zeros((40, 40, 40), np.uint16)
    nothing[20, 20, 20] = 1
    assert not deepbet(Volume(nothing, np.eye(4))).any()


@pytest.fixture(scope="module")
def hdbet_weights(tmp_path_factory):
    """An nnU-Net v2 model folder with random weights, laid out as HD-BET's own."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    arch = {
        "n_stages": 3, "features_per_stage": [4, 8, 8], "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1], "conv_bias": True, "norm_op_kwargs": {"affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    classes = {"conv_op": "Conv3d", "norm_op": "InstanceNorm3d", "nonlin": "LeakyReLU"}
    resample = {"order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2, "patch_size": [32, 32, 32], "spacing": [6.0, 5.0, 5.0],
        "median_image_size_in_voxels": [30, 40, 40], "batch_dice": True,
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": f"{PlainConvUNet.__module__}.PlainConvUNet",
            "arch_kwargs": arch | {key: f"torch.nn.{name}" for key, name in classes.items()},
            "_kw_requires_import": list(classes),
        },
    }  # fmt: skip
    for kind, changes in (("data", {"is_seg": False}), ("seg", {"is_seg": True, "order": 1}),
                          ("probabilities", {"is_seg": False, "order": 1})):  # fmt: skip
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{kind}_kwargs"] = resample | changes
    plans = {
        "dataset_name": "Dataset000_tiny", "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip
    dataset = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "brain": 1},
        "numTraining": 1, "file_ending": ".nii.gz",
    }  # fmt: skip

    torch.manual_seed(3)
    live = {key: getattr(torch.nn, name) for key, name in classes.items()}
    model = PlainConvUNet(1, num_classes=2, **arch, **live)
    checkpoint = {
        "network_weights": model.state_dict(), "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("hdbet")
    (folder / "fold_all").mkdir()
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.save(checkpoint, folder / "fold_all" / "checkpoint_final.pth")
    return folder


def test_hdbet_gives_what_nnunet_gives_for_the_file(hdbet_weights, tmp_path):
    import torch

    from mrmill.masks.hdbet import load_predictor
    from mrmill.volumes import read_volume, write_volume

    masker = make_masker(Deface(backend="hdbet", device="cpu", weights=hdbet_weights), threads=1)
    rng = np.random.default_rng(8)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0.8, 0.6], [0, -0.6, 0.8], [1, 0, 0]]) @ np.diag([4, 5, 7])
    write_volume(
        tmp_path / "x.nii.gz", rng.integers(0, 900, (50, 44, 26)).astype(np.uint16), affine
    )

    volume = read_volume(tmp_path / "x.nii.gz")
    mask = masker(volume)

    stock = load_predictor(hdbet_weights, torch.device("cpu"))
    stock.predict_from_files_sequential([[str(tmp_path / "x.nii.gz")]], [str(tmp_path / "mask")])
    expected = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert mask.dtype == np.uint8
    assert mask.shape == volume.data.shape
    assert 0.02 < mask.mean() < 0.98
    np.testing.assert_array_equal(mask, expected)


def test_hdbet_predicts_with_the_settings_of_its_own_command(hdbet_weights, monkeypatch):
    import torch
    from HD_BET import hd_bet_prediction

    from mrmill.masks.hdbet import load_predictor

    monkeypatch.setattr(hd_bet_prediction, "folder_with_parameter_files", str(hdbet_weights))
    threads = torch.get_num_threads()
    theirs = hd_bet_prediction.get_hdbet_predictor(use_tta=True, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    ours = load_predictor(hdbet_weights, torch.device("cpu"))
    for setting in ("tile_step_size", "use_gaussian", "use_mirroring", "allowed_mirroring_axes",
                    "perform_everything_on_device"):  # fmt: skip
        assert getattr(ours, setting) == getattr(theirs, setting)


def test_an_incomplete_model_folder_is_named(hdbet_weights, tmp_path):
    (tmp_path / "plans.json").write_bytes((hdbet_weights / "plans.json").read_bytes())
    settings = Deface(backend="hdbet", device="cpu", weights=tmp_path)
    with pytest.raises(MaskerError, match=r"no dataset\.json, fold_all/checkpoint_final\.pth"):
        make_masker(settings, threads=1)
