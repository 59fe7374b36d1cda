"""reinit_layers.py run as a user runs it."""

import gzip
import itertools
import json
import re
import shutil
from functools import partial
from pathlib import Path

import programs
import pytest
import torch
from PIL import Image
from programs import REFERENCE, ROOT, files_below, results, run_main, table, weights
from torch.nn.functional import cross_entropy
from torchvision.models import SqueezeNet1_1_Weights

import models
import reinit_layers
import train
from data.idx import read_mini
from utils import reinit
from utils.correlation import NAMES

MINI = ("--dataset", "fashion_mnist_mini")
LENET = ("--arch", "lenet", *MINI)
CONVOLUTIONS = [f"features.{index}" for index in (0, 2, 5, 7, 10, 12)]


run = partial(run_main, reinit_layers)
refused = partial(programs.refused, reinit_layers)


def inits(*paths) -> Path:
    Path("inits.txt").write_text("\n\n".join(map(str, paths)) + "\n  \n")
    return Path("inits.txt")


@pytest.fixture
def mnist_test_set() -> Path:
    """A folder of datasets with the test images of MNIST; there are no training images in it."""
    raw = Path("datasets/MNIST/raw")
    raw.mkdir(parents=True)
    for source, name in (("images", "t10k-images-idx3-ubyte"), ("labels", "t10k-labels-idx1-ubyte")):
        (raw / name).write_bytes(gzip.decompress((REFERENCE / f"mnist_test_{source}.gz").read_bytes()))
    return Path("datasets")


def test_seed_for_choosing_classes_is_recorded_where_classes_are_chosen(capsys):
    shutil.copy(REFERENCE / "lenet_init_0.pt", "lenet_2.pt")
    for options in (("--class-sample-seed", 3), ()):
        assert run(*LENET, "--rand", "--seed", 1, "--load-from", "lenet_2.pt", *options) == 0
        measured = results("results/fashion_mnist_mini/lenet/1/reinit_lenet_2.json")
        assert measured["provenance"]["arguments"]["class_sample_seed"] is None
    assert "held results that differ in" not in capsys.readouterr().err


def test_layer_with_which_outputs_are_not_finite_has_no_accuracy_and_others_have(capsys):
    initial = torch.load(REFERENCE / "lenet_init_0.pt")
    torch.save({**initial, "features.5.weight": initial["features.5.weight"] * 1e38}, "lenet_init_0.pt")
    options = (*LENET, "--load-from", REFERENCE / "lenet_2.tar", "--rand", "--seed", 1)
    assert run(*options, "--inits-from", inits(REFERENCE / "lenet_init_0.pt"), "--results", "sound") == 0
    assert run(*options, "--inits-from", inits("lenet_init_0.pt")) == 0
    output = capsys.readouterr()
    assert "not defined for features.5" in output.out
    assert re.search(r"^ +0 .* nan ", output.out, re.M)
    ours = results("results/fashion_mnist_mini/lenet/1/reinit_lenet_2.json")
    sound = results("sound/fashion_mnist_mini/lenet/1/reinit_lenet_2.json")
    for key in ("init_from_epoch", "relative_drop", "corrected_drop"):
        sound[key]["0"][2] = None
        assert ours[key] == sound[key]
    assert ours["correlation"] == {}


def test_batch_norm_keeps_its_trained_parameters_and_statistics():
    torch.manual_seed(1)
    weights = models.build("resnet18", 10, 1, (28, 28)).state_dict()
    torch.save(weights, "resnet18_2.pt")
    batch_norm = {name: value for name, value in weights.items() if re.search(r"bn|downsample\.1", name)}
    assert len(batch_norm) == 20 * 5
    other = {name: value + 1 for name, value in batch_norm.items()}
    torch.save({**weights, **other}, "resnet18_init_0.pt")
    assert (
        run(
            "--arch",
            "resnet18",
            *MINI,
            "--load-from",
            "resnet18_2.pt",
            "--inits-from",
            inits("resnet18_init_0.pt"),
        )
        == 0
    )
    measured = results("results/fashion_mnist_mini/resnet18/reinit_resnet18_2.json")
    assert measured["init_from_epoch"]["0"] == [measured["top1_test"]] * 17


def test_accuracies_on_mnist_are_those_of_the_reference(mnist_test_set):
    expected = json.loads((REFERENCE / "reinit_lenet_2.json").read_text())
    snapshots = [REFERENCE / name for name in ("lenet_init_0.pt", "lenet_0.tar", "lenet_2.tar")]
    options = ("--arch", "lenet", "--dataset", "mnist", "--seed", 1, "--rand", "--batch-size", 500)
    assert run(*options, "--load-from", REFERENCE / "lenet_2.tar", "--inits-from", inits(*snapshots)) == 0
    measured = results("results/mnist/lenet/1/reinit_lenet_2.json")
    for epoch in ("0", "1", "3"):
        assert measured["init_from_epoch"][epoch] == pytest.approx(expected["init_from_epoch"][epoch], abs=0.0101)
    for key in ("top1_test", "top5_test"):
        assert measured[key] == pytest.approx(expected[key], abs=0.0101)
    for key in ("arch", "dataset", "seed", "epoch"):
        assert measured[key] == expected[key]
    assert len(measured["init_from_epoch"]["rand"]) == len(expected["init_from_epoch"]["rand"]) == 6
    assert measured["layers"] == CONVOLUTIONS
    # The bias, from the same weights, is that of the reference's projections.
    projections = json.loads((REFERENCE / "projections_lenet_2_normalized_with_linear.json").read_text())
    mass = [projections[stage][block]["mass"] for stage in "012" for block in "01"]
    assert [measured["projections"][name]["mass"] for name in CONVOLUTIONS] == pytest.approx(mass)
    trained = expected["top1_test"]
    drops = [(trained - accuracy) / trained for accuracy in expected["init_from_epoch"]["0"]]
    assert measured["relative_drop"]["0"] == pytest.approx(drops, abs=1e-3)
    assert measured["relative_drop"]["3"] == [0] * 6
    drops = [(trained - accuracy) / (trained - 10) for accuracy in expected["init_from_epoch"]["0"]]
    assert measured["corrected_drop"]["0"] == pytest.approx(drops, abs=1e-3)
    assert measured["hidden_layers"] == CONVOLUTIONS[1:]
    from scipy.stats import spearmanr

    correlation = spearmanr(mass[1:], drops[1:]).statistic
    assert measured["correlation"]["mass"]["spearman"] == pytest.approx(correlation)
    pairings = [abs(spearmanr(mass[1:], order).statistic) for order in itertools.permutations(drops[1:])]
    as_far = sum(other >= abs(correlation) - 1e-9 for other in pairings)
    assert measured["correlation"]["mass"]["p_value"] == pytest.approx(as_far / len(pairings))
    moved = [projections[stage][block]["l2_dist"] for stage in "012" for block in "01"]
    assert [measured["projections"][name]["l2_dist"] for name in CONVOLUTIONS] == pytest.approx(moved, rel=1e-4)


def test_layers_are_put_back_along_the_identity_line(capsys):
    options = (*LENET, "--identity-line", "--load-from", REFERENCE / "lenet_2.tar")
    assert run(*options, "--rand") == 2
    assert "--identity-line: --inits-from has no snapshot of the initialization" in capsys.readouterr().err
    assert run(*options, "--inits-from", inits(REFERENCE / "lenet_init_0.pt")) == 0
    measured = results("results/fashion_mnist_mini/lenet/reinit_lenet_2.json")
    assert list(measured["init_from_epoch"]) == ["0", *reinit.DIRECTIONS]
    # The accuracy is that of a network whose layer has the weights in question.
    weights = torch.load(REFERENCE / "lenet_2.tar", weights_only=True)["model_state_dict"]
    initial = torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)
    name = f"{CONVOLUTIONS[3]}.weight"
    sums = (weights[name] - initial[name]).sum((1, 2, 3), keepdim=True)
    weights[name] -= sums / weights[name][0].numel()
    torch.save(weights, "lenet_3.pt")
    assert run(*LENET, "--load-from", "lenet_3.pt", "--rand", "--results", "by hand") == 0
    by_hand = results("by hand/fashion_mnist_mini/lenet/reinit_lenet_3.json")
    assert measured["init_from_epoch"]["identity_line"][3] == pytest.approx(by_hand["top1_test"], abs=0.11)


def test_console_has_the_table_and_files_are_where_it_says(capsys):
    options = ("--load-from", REFERENCE / "lenet_2.tar", "--inits-from", inits(REFERENCE / "lenet_init_0.pt"))
    assert run(*LENET, *options) == 0
    output = capsys.readouterr().out
    measured = results("results/fashion_mnist_mini/lenet/reinit_lenet_2.json")
    assert "seed" not in measured
    header = re.search(r"^ +features\.0 .*$", output, re.M)[0]
    assert header.split() == CONVOLUTIONS
    row = re.search(r"^ +0 +[\d.]+ .*$", output, re.M)[0]
    assert [float(value) for value in row.split()[1:]] == pytest.approx(
        measured["init_from_epoch"]["0"], abs=0.005
    )
    told = re.search(r"critical \(more than half of the accuracy beyond chance .* to 0\): (.*)", output)[1]
    critical = [n for n, drop in zip(CONVOLUTIONS, measured["corrected_drop"]["0"], strict=True) if drop > 0.5]
    assert told == (", ".join(critical) or "none")
    for name, found in measured["correlation"].items():
        assert re.search(
            rf"^{re.escape(NAMES[name])} +{re.escape(format(found['spearman'], '+.2f'))} ", output, re.M
        )
    figures = {f"{kind}_lenet_2.{suffix}" for kind in ("reinit", "criticality") for suffix in ("pdf", "png")}
    assert files_below(Path("plots")) == {f"fashion_mnist_mini/lenet/{figure}" for figure in figures}
    assert Path("plots/fashion_mnist_mini/lenet/reinit_lenet_2.png").read_bytes().startswith(b"\x89PNG")
    for path in re.findall(r"^(?:results|table|figure): (.*)$", output, re.M):
        assert Path(path).exists()
    (log,) = Path("log/fashion_mnist_mini/lenet").iterdir()
    assert log.name.endswith("_reinit_weights.log")
    assert told in log.read_text()


def test_distances_and_drops_are_from_the_same_initialization():
    torch.save(torch.load(REFERENCE / "lenet_0.tar")["model_state_dict"], "lenet_pretrained_0.pt")
    for name, paths in (("both", ("lenet_pretrained_0.pt",)), ("one", ())):
        listed = inits(REFERENCE / "lenet_init_0.pt", *paths)
        options = ("--load-from", REFERENCE / "lenet_2.tar", "--inits-from", listed, "--results", name)
        assert run(*LENET, *options) == 0
    both, one = (results(f"{name}/fashion_mnist_mini/lenet/reinit_lenet_2.json") for name in ("both", "one"))
    assert set(both["init_from_epoch"]) == {"-1", "0"}
    assert (both["projections"], both["correlation"]) == (one["projections"], one["correlation"])


def test_table_has_a_row_for_each_reset_and_layer():
    run_of = ("--subsample-classes", 3, "--seed", 7, "--name", "noise_20")
    Path("pixel_shuffle").mkdir()
    network = models.build("lenet", 3, 1)
    torch.save(network.state_dict(), "pixel_shuffle/lenet_4.pt")
    torch.save({name: 1e38 * w for name, w in network.state_dict().items()}, "lenet_init_0.pt")
    options = (
        *run_of,
        "--load-from",
        "pixel_shuffle/lenet_4.pt",
        "--inits-from",
        inits("lenet_init_0.pt"),
        "--rand",
    )
    assert run(*LENET, *options) == 0
    folder = Path("results/fashion_mnist_mini_3/pixel_shuffle/lenet/noise_20/7")
    measured, rows = results(folder / "reinit_lenet_4.json"), table(folder / "reinit_lenet_4.csv")
    pairs = [(reset_to, layer) for reset_to in measured["init_from_epoch"] for layer in CONVOLUTIONS]
    assert [(row["reset_to"], row["layer"]) for row in rows] == pairs
    assert {row["reset_to"] for row in rows} == {"0", "rand"}
    for row in rows:
        depth = CONVOLUTIONS.index(row["layer"])
        same = {"dataset": "fashion_mnist_mini_3", "noise": "pixel_shuffle", "arch": "lenet", "name": "noise_20"}
        same |= {"seed": "7", "snapshot": "lenet_4", "epoch": "4", "depth": str(depth + 1)}
        same |= {"top1_trained": str(measured["top1_test"])}
        same |= {name: str(value) for name, value in measured["projections"][row["layer"]].items()}
        numbers = {"top1_reset": "init_from_epoch"}
        numbers |= {name: name for name in ("relative_drop", "corrected_drop")}
        for column, key in numbers.items():
            value = measured[key][row["reset_to"]][depth]
            same[column] = "" if value is None else str(value)
        assert row == {"reset_to": row["reset_to"], "layer": row["layer"], **same}
    assert "" in {row["top1_reset"] for row in rows}
    documented = (ROOT / "docs/files.md").read_text()
    assert [column for column in rows[0] if f"`{column}`" not in documented] == []


def test_with_linear_resets_the_fully_connected_layers_too():
    options = ("--load-from", REFERENCE / "lenet_2.tar", "--inits-from", inits(REFERENCE / "lenet_init_0.pt"))
    assert run(*LENET, *options) == 0
    without = results("results/fashion_mnist_mini/lenet/reinit_lenet_2.json")
    assert run(*LENET, *options, "--with-linear", "--results", "linear") == 0
    with_linear = results("linear/fashion_mnist_mini/lenet/reinit_lenet_2.json")
    assert with_linear["layers"] == [*CONVOLUTIONS, "classifier.0", "classifier.3", "classifier.6"]
    assert with_linear["init_from_epoch"]["0"][:6] == without["init_from_epoch"]["0"]


def test_random_weights_are_independent_of_the_trained_networks_initialization():
    # A network that was never trained: its own initialization changes nothing, a fresh one does.
    options = ("--load-from", REFERENCE / "lenet_init_0.pt", "--inits-from", inits(REFERENCE / "lenet_init_0.pt"))
    assert run(*LENET, "--seed", 1, "--rand", *options) == 0
    measured = results("results/fashion_mnist_mini/lenet/1/reinit_lenet_init_0.json")
    assert measured["init_from_epoch"]["0"] == [measured["top1_test"]] * 6
    assert measured["init_from_epoch"]["rand"] != [measured["top1_test"]] * 6
    assert measured["epoch"] == "0"
    # The recorded seed gives the same weights again.
    torch.manual_seed(measured["rand_seed"])
    torch.save(models.build("lenet", 10, 1).state_dict(), "lenet_9.pt")
    again = ("--load-from", REFERENCE / "lenet_init_0.pt", "--inits-from", inits("lenet_9.pt"))
    assert run(*LENET, *again, "--results", "again") == 0
    repeated = results("again/fashion_mnist_mini/lenet/reinit_lenet_init_0.json")
    assert repeated["init_from_epoch"]["9"] == measured["init_from_epoch"]["rand"]


def test_same_command_gives_the_same_results():
    options = ("--seed", 1, "--rand", "--load-from", REFERENCE / "lenet_2.tar")
    assert run(*LENET, *options, "--results", "first") == 0
    assert run(*LENET, *options, "--results", "second") == 0
    name = "fashion_mnist_mini/lenet/1/reinit_lenet_2.json"
    assert Path("first", name).read_bytes() == Path("second", name).read_bytes()
    assert results(f"first/{name}")["correlation"] == {}  # no initialization


def test_images_are_prepared_as_the_snapshot_records(capsys, titles):
    """Classes, pixel values, noise folder and titles of a run of train.py; the accuracy is the one it reported."""
    trained = (
        "--subsample-classes",
        3,
        "--class-sample-seed",
        4,
        "--unnormalize",
        "--noise",
        0.1,
        "--noise-seed",
        1,
    )
    assert train.main([*map(str, (*LENET, *trained, "--lr", 0.05, "--epochs", 2, "--seed", 1, "--shuffle"))]) == 0
    folder = Path("models/fashion_mnist_mini_3/noise_10/lenet/1")
    snapshot = torch.load(folder / "lenet_1.tar", weights_only=True)
    capsys.readouterr()
    options = (
        "--seed",
        1,
        "--load-from",
        folder / "lenet_1.tar",
        "--inits-from",
        inits(folder / "lenet_init_0.pt"),
    )
    assert run(*LENET, *options) == 0
    assert "recorded with the network; pixel values are in [0, 1]" in capsys.readouterr().out
    measured = results("results/fashion_mnist_mini_3/noise_10/lenet/1/reinit_lenet_1.json")
    assert measured["top1_test"] == pytest.approx(snapshot["top1_acc"])
    assert measured["dataset"] == "fashion_mnist_mini"
    assert all(
        "on fashion_mnist_mini, 3 classes, 10 % label noise:" in title.replace("\n", " ") for title in titles
    )
    # Its final weights say nothing themselves, but the state beside them does.
    final = ("--seed", 1, "--load-from", folder / "lenet_2.pt", *options[4:])
    assert run(*LENET, *final) == 0
    output = capsys.readouterr()
    assert "recorded with the network; pixel values are in [0, 1]" in output.out
    assert "says nothing of its run" not in output.err
    of_final = results("results/fashion_mnist_mini_3/noise_10/lenet/1/reinit_lenet_2.json")
    assert of_final["top1_test"] == measured["top1_test"]
    assert "--subsample-classes" in refused(capsys, *LENET, *options, "--subsample-classes", 4)
    assert "--upscale" in refused(capsys, *LENET, *options, "--upscale")
    assert "--seed 2" in refused(capsys, *LENET, *options[2:], "--seed", 2)


@pytest.fixture
def mini_test_set() -> tuple[torch.Tensor, torch.Tensor]:
    """The images, with values in [0, 1], and labels of the test set that comes with the repository."""
    source, _ = read_mini(Path(), train=False)
    return source.images.float() / 255, torch.from_numpy(source.labels)


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [(("--unnormalize",), 0, 1), (("--mean", 0.5, "--std", 0.25), 0.5, 0.25)],
)
def test_images_are_prepared_as_asked_for_another_programs_network(options, mean, std, mini_test_set, capsys):
    assert run(*LENET, *options, "--rand", "--load-from", REFERENCE / "lenet_2.tar", "--cuda") == 0
    first, *_, last = capsys.readouterr().err.splitlines()  # there is no GPU
    assert first == last
    assert first.startswith("warning: --cuda")
    measured = results("results/fashion_mnist_mini/lenet/reinit_lenet_2.json")
    expected = None if "--unnormalize" in options else {"mean": [mean], "std": [std]}
    assert measured["normalization"] == expected
    net = models.build("lenet", 10, 1).eval()
    net.load_state_dict(weights(REFERENCE / "lenet_2.tar"))
    images, labels = mini_test_set
    hits = net((images - mean) / std).argmax(1) == labels
    assert measured["top1_test"] == pytest.approx(100 * hits.float().mean().item(), abs=0.11)


def test_head_with_more_classes_than_an_image_folder_is_kept(capsys, monkeypatch):
    for part, label, number in itertools.product(("train", "val"), "abc", range(2)):
        Path(part, label).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((256, 256), 20 + 60 * number).convert("RGB").save(f"{part}/{label}/{number}.png")
    torch.manual_seed(3)
    net = models.build("squeezenet1_1", 1000).eval()
    net.classifier[1].bias.data[:4] += torch.rand(4)
    torch.save(net.state_dict(), "squeezenet1_1_9.pt")
    protocol = SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    images = torch.stack([protocol(Image.open(path)) for path in sorted(Path("val").rglob("*.png"))])
    logits, labels = net(images), torch.arange(6) // 2
    expected = [100 * (logits.topk(k).indices == labels[:, None]).sum().item() / 6 for k in (1, 5)]
    folder = ("--arch", "squeezenet1_1", "--dataset", "imagenet", "--data-path", ".", "--workers", 0)
    assert run(*folder, "--rand", "--load-from", "squeezenet1_1_9.pt") == 0
    measured = results("results/imagenet/squeezenet1_1/reinit_squeezenet1_1_9.json")
    assert [measured["top1_test"], measured["top5_test"]] == pytest.approx(expected)
    assert measured["head_classes"] == 1000
    Path("hub/checkpoints").mkdir(parents=True)
    Path("squeezenet1_1_9.pt").rename("hub/checkpoints/squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setenv("TORCH_HOME", str(Path().resolve()))
    assert run_main(train, *folder, "--pretrained", "--evaluate") == 0
    output = capsys.readouterr()
    assert f"test set: loss {cross_entropy(logits, labels):.4f}, top-1 {expected[0]:.2f} %" in output.out
    assert output.err.count("the network has 1,000 classes and . has 3: its head is kept") == 2


def test_initialization_of_another_run_is_warned_about(capsys):
    for seed in (1, 2):
        options = (*LENET, "--subsample-classes", 2, "--epochs", 1, "--seed", seed)
        assert train.main([str(option) for option in options]) == 0
    first, second = (f"models/fashion_mnist_mini_2/lenet/{seed}/lenet_0.tar" for seed in (1, 2))
    capsys.readouterr()
    assert run(*LENET, "--load-from", first, "--inits-from", inits(second)) == 0
    assert f"{second} is of another run than the trained network: --seed 2, not 1" in capsys.readouterr().err


@pytest.fixture
def two_runs() -> tuple[Path, Path]:
    """The folders of two trained networks, of seeds 1 and 2."""
    for seed in (1, 2):
        assert run_main(train, *LENET, "--seed", seed, "--epochs", 1, "--lr", 0.02) == 0
    return Path("models/fashion_mnist_mini/lenet/1"), Path("models/fashion_mnist_mini/lenet/2")


def test_learning_rate_replaced_on_the_way_makes_no_other_run(capsys):
    options = (*LENET, "--subsample-classes", 2, "--seed", 1, "--snapshot-every", 1)
    assert run_main(train, *options, "--epochs", 1) == 0
    assert run_main(train, *options, "--epochs", 2, "--lr", 0.01, "--resume-from", "latest", "--override") == 0
    first, last = (f"models/fashion_mnist_mini_2/lenet/1/lenet_{epoch}.tar" for epoch in (0, 1))
    capsys.readouterr()
    assert run(*LENET, "--load-from", last, "--inits-from", inits(first)) == 0
    assert "another run" not in capsys.readouterr().err
    # But that of a run from the same seed does.
    assert (
        run_main(train, *options, "--epochs", 1, "--lr", 0.01, "--models-path", "other", "--tb-logdir", "b") == 0
    )
    other = "other/fashion_mnist_mini_2/lenet/1/lenet_0.tar"
    capsys.readouterr()
    assert run(*LENET, "--load-from", other, "--inits-from", inits(first)) == 0
    assert f"{first} is of another run than the trained network: --lr 0.001, not 0.01" in capsys.readouterr().err


@pytest.mark.long
def test_replacing_the_results_of_something_else_is_warned_about(two_runs, capsys):
    mine, other = two_runs
    trained = ("--load-from", mine / "lenet_1.pt", "--inits-from", inits(mine / "lenet_init_0.pt"))
    warning = "reinit_lenet_1.json held results that differ in"
    for _ in range(2):  # the same command again
        assert run(*LENET, *trained) == 0
        assert warning not in capsys.readouterr().err
    assert run(*LENET, *trained, "--batch-size", 500, "--with-linear") == 0
    assert f"{warning} --with-linear, and" in capsys.readouterr().err
    trained = ("--load-from", other / "lenet_1.pt", "--inits-from", inits(other / "lenet_init_0.pt"))
    assert run(*LENET, *trained, "--with-linear") == 0
    assert f"{warning} --seed of the training, and" in capsys.readouterr().err
    Path("results/fashion_mnist_mini/lenet/reinit_lenet_1.json").write_text("[1, 2")
    assert run(*LENET, *trained) == 0
    assert warning not in capsys.readouterr().err


def test_network_that_guesses_is_warned_about(capsys):
    assert run(*LENET, "--load-from", REFERENCE / "lenet_init_0.pt", "--rand") == 0
    assert "and guessing gives 10.00 %: there is no accuracy to lose" in capsys.readouterr().err
    assert (
        results("results/fashion_mnist_mini/lenet/reinit_lenet_init_0.json")["corrected_drop"]["rand"]
        == [None] * 6
    )


def test_snapshots_of_one_epoch_count_once_where_they_are_the_same(capsys):
    shutil.copy(REFERENCE / "lenet_init_0.pt", "lenet_init_0.pt")
    options = ("--load-from", REFERENCE / "lenet_2.tar", "--inits-from")
    same = inits(REFERENCE / "lenet_init_0.pt", "lenet_init_0.pt")
    assert run(*LENET, *options, same) == 0
    assert list(results("results/fashion_mnist_mini/lenet/reinit_lenet_2.json")["init_from_epoch"]) == ["0"]
    other = torch.load("lenet_init_0.pt", weights_only=True)
    other["features.12.bias"] += 1
    torch.save(other, "lenet_init_0.pt")
    capsys.readouterr()
    line = refused(capsys, *LENET, *options, same)
    assert str(REFERENCE / "lenet_init_0.pt") in line
    assert " lenet_init_0.pt are different weights" in line


@pytest.mark.parametrize(
    "arch", [*(pytest.param(arch, marks=pytest.mark.long) for arch in ("mlp_bn", "vgg11bn")), "resnet18"]
)
def test_networks_of_every_kind_from_snapshot_to_figures(arch, capsys):
    image_size = (32, 32)
    folder = Path("datasets/cifar-10-batches-bin")
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    records = torch.randint(256, (12, 3073), generator=random, dtype=torch.uint8)
    records[:, 0] = torch.arange(12) % 10
    (folder / "test_batch.bin").write_bytes(records.numpy().tobytes())
    for seed, name in ((1, f"{arch}_init_0.pt"), (2, f"{arch}_5.pt")):
        torch.manual_seed(seed)
        torch.save(models.build(arch, 10, 3, image_size).state_dict(), name)
    options = ("--arch", arch, "--dataset", "cifar10", "--load-from", f"{arch}_5.pt", "--batch-size", 12)
    linear = ("--with-linear",) if arch == "mlp_bn" else ()
    assert run(*options, *linear, "--inits-from", inits(f"{arch}_init_0.pt"), "--rand") == 0
    measured = results(f"results/cifar10/{arch}/reinit_{arch}_5.json")
    assert measured["epoch"] == "5"
    dimensions = 2 if linear else 4
    assert measured["layers"] == [
        name.removesuffix(".weight")
        for name, weight in weights(f"{arch}_5.pt").items()
        if weight.dim() == dimensions and weight.shape[2:] != (1, 1)
    ]
    output = capsys.readouterr().out
    for name in measured["layers"]:
        assert name in output
    assert max(map(len, output.splitlines())) < 200


# Wrong use


def test_all_missing_paths_of_the_list_are_named_at_once(capsys):
    wrong = inits("first.tar", REFERENCE / "lenet_init_0.pt", "second.tar")
    line = refused(capsys, *LENET, "--load-from", REFERENCE / "lenet_2.tar", "--inits-from", wrong)
    assert "first.tar (and 1 more)" in line


def test_initialization_of_another_architecture_is_refused_by_name(capsys):
    torch.save(models.build("lenet", 7, 1).state_dict(), "lenet_init_0.pt")
    options = ("--load-from", REFERENCE / "lenet_2.tar", "--inits-from", inits("lenet_init_0.pt"))
    line = refused(capsys, *LENET, *options)
    assert "lenet_init_0.pt" in line
    assert "classifier.6.weight is 7x84, not 10x84" in line


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(trained, value, capsys):
    """Such a filter may be silent behind its ReLU, and accuracies would look plausible."""
    broken = torch.load(REFERENCE / "lenet_init_0.pt", weights_only=True)
    broken["features.5.weight"] = broken["features.5.weight"].double()
    broken["features.5.weight"][0, 0, 0, 0] = value
    torch.save(broken, "lenet_init_0.pt")
    load_from, init = ("lenet_init_0.pt", REFERENCE / "lenet_0.tar")[:: 1 if trained else -1]
    options = ("--load-from", load_from, "--inits-from", inits(init))
    assert "lenet_init_0.pt cannot be used: features.5.weight" in refused(capsys, *LENET, *options)
