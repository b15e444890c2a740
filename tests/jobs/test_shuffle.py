"""What a shuffle writes: every sample once, in an order that the seed alone decides, and a fair one."""

from __future__ import annotations

import gzip
import io
import itertools
import math
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tars
from support.maps import bytes_of, finished_shards, pairs_of, records_in
from support.reorders import (
    FROM_ANYWHERE,
    PLANS,
    every_plan,
    keys_in,
    manifest_of,
    multiset,
    one_shard_a_task,
    put_records,
    put_shards,
    read_back,
    samples_in,
    shuffle,
    sizes_in,
    sort,
)

from tarmill.errors import JobFailed, OutputExistsError, SpecError, TarmillError, UsageError
from tarmill.formats.tar_read import iter_samples
from tarmill.spec import ReorderOptions

# A permutation


@every_plan
def test_every_sample_comes_out_once_and_not_in_the_order_it_had(tmp_path: Path, plan: str) -> None:
    source = put_shards(tmp_path, 4, 25)
    report = shuffle(source, tmp_path / "out-@4.tar", plan=plan)
    before = [record for shard in range(4) for record in records_in(tmp_path / f"in-{shard}.tar")]
    after = samples_in(tmp_path / "out-@4.tar")
    assert multiset(after) == multiset(before)
    assert after != before
    assert (report.counts.read, report.counts.written) == (100, 100)


def test_the_bytes_of_samples_are_copied_as_they_are_with_times_modes_and_owners(tmp_path: Path) -> None:
    members = {
        tars.header(f"k{n}.{field}", 3, uid_field=tars.octal(7 + n, 8)) + tars.padded(b"%3d" % n)
        for n in range(6)
        for field in ("a", "b")
    }
    pairs = sorted(members)
    (tmp_path / "in-0.tar").write_bytes(b"".join(pairs) + tars.END)
    shuffle(tmp_path / "in-@1.tar", tmp_path / "out-@1.tar")
    data = (tmp_path / "out-0.tar").read_bytes()
    assert {data[at : at + 1024] for at in range(0, len(data) - 1024, 1024)} == members


@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_other_readers_read_compressed_outputs(tmp_path: Path, plan: str) -> None:
    source = put_shards(tmp_path, 2, 10)
    shuffle(source, tmp_path / "out-@2.tar.gz", plan=plan)
    wanted = multiset([sample for shard in range(2) for sample in tars.samples_of(pairs_of(shard, 10))])
    datas = [gzip.decompress((tmp_path / f"out-{shard}.tar.gz").read_bytes()) for shard in range(2)]
    assert multiset([sample for data in datas for sample in tars.webdataset_listing(data)]) == wanted
    assert multiset([sample for data in datas for sample in tars.samples_of(tars.tarfile_listing(data))]) == wanted


@pytest.mark.parametrize("function", ["dir_plus_file", "last_dir", r"^(.*/.)(.*)$"])
@every_plan
def test_other_key_functions_group_members_as_they_say(tmp_path: Path, plan: str, function: str) -> None:
    names = [f"d{n}/{field}.txt" for n in range(9) for field in "xy"[: 1 + n % 2]]
    (tmp_path / "in-0.tar").write_bytes(tars.ustar([(name, name.encode()) for name in names]))
    before = (tmp_path / "in-0.tar").read_bytes()
    report = shuffle_only(tmp_path / "in-@1.tar", tmp_path / "out-@1.tar", plan, key_function=function)
    found = tars.tarfile_listing((tmp_path / "out-0.tar").read_bytes())
    assert sorted(name for name, _ in found) == sorted(names)
    assert all(name.encode() == body for name, body in found)
    assert report.counts.read == (9 if function != r"^(.*/.)(.*)$" else len(names))
    if function != r"^(.*/.)(.*)$":
        folders = [name[:2] for name, _ in found]
        assert len([1 for one, two in itertools.pairwise(folders) if one != two]) == 8, "samples stay whole"
    assert before == (tmp_path / "in-0.tar").read_bytes()


def shuffle_only(source: Path, output: Path, plan: str, **fields: Any) -> Any:
    """Shuffle without reading back, where the default key function would read other samples."""
    from tarmill.jobs.reorder import run
    from tarmill.spec import ShuffleSpec

    return run(ShuffleSpec(input=str(source), output=str(output), **fields), ReorderOptions(workers=1, plan=plan))


@every_plan
@pytest.mark.parametrize("shards", [1, 3])
def test_no_samples_give_no_shards_and_a_manifest(tmp_path: Path, plan: str, shards: int) -> None:
    for shard in range(shards):
        (tmp_path / f"in-{shard}.tar").write_bytes(tars.END)
    report = shuffle(tmp_path / f"in-@{shards}.tar", tmp_path / "out-@.tar", plan=plan)
    assert bytes_of(tmp_path) == {}
    assert (report.shards_total, manifest_of(tmp_path / "out-@.tar")["samples"]) == (0, 0)


@every_plan
def test_one_sample_is_shuffled_too(tmp_path: Path, plan: str) -> None:
    source = put_shards(tmp_path, 1, 1)
    shuffle(source, tmp_path / "out-@.tar", plan=plan)
    assert bytes_of(tmp_path) == {"out-000000.tar": (tmp_path / "in-0.tar").read_bytes()}


@every_plan
def test_a_pattern_may_name_one_shard_twice_and_its_samples_come_twice(tmp_path: Path, plan: str) -> None:
    put_shards(tmp_path, 1, 5)
    shuffle(f"{tmp_path}/in-0.tar::{tmp_path}/in-0.tar", tmp_path / "out-@1.tar", plan=plan)
    found = multiset(samples_in(tmp_path / "out-@1.tar"), keys=False)
    assert set(found.values()) == {2}
    assert len(found) == 5


# Seeds


@every_plan
def test_the_seed_decides_the_bytes(tmp_path: Path, plan: str) -> None:
    source = put_shards(tmp_path, 3, 20)
    for name, seed in (("one", "7"), ("two", "7"), ("three", "8"), ("four", "18446744073709551615")):
        shuffle(source, tmp_path / name / "out-@3.tar", plan=plan, seed=seed)
        assert manifest_of(tmp_path / name / "out-@3.tar")["seed"] == int(seed)
    one, two, three, four = (bytes_of(tmp_path / name) for name in ("one", "two", "three", "four"))
    assert one == two
    assert len({one["out-0.tar"], three["out-0.tar"], four["out-0.tar"]}) == 3


def test_without_a_seed_it_follows_from_inputs_and_options_and_is_recorded(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 2, 20)
    shuffle(source, tmp_path / "out-@2.tar")
    seed, before = manifest_of(tmp_path / "out-@2.tar")["seed"], bytes_of(tmp_path)
    assert 0 <= seed < 1 << 64
    shuffle(source, tmp_path / "out-@2.tar", exists="overwrite")
    assert (manifest_of(tmp_path / "out-@2.tar")["seed"], bytes_of(tmp_path)) == (seed, before)
    shuffle(source, tmp_path / "given" / "out-@2.tar", seed=str(seed))
    assert bytes_of(tmp_path / "given") == before
    shuffle(source, tmp_path / "out-@2.tar", exists="overwrite", salt="other")
    assert manifest_of(tmp_path / "out-@2.tar")["seed"] != seed


def test_a_random_seed_is_drawn_each_time_and_gives_the_same_bytes_when_given_again(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 2, 20)
    seeds = set()
    for number in range(3):
        output = tmp_path / str(number) / "out-@2.tar"
        shuffle(source, output, seed="random")
        seeds.add(manifest_of(output)["seed"])
        shuffle(source, tmp_path / f"again-{number}" / "out-@2.tar", seed=str(manifest_of(output)["seed"]))
        assert bytes_of(tmp_path / f"again-{number}") == bytes_of(tmp_path / str(number))
    assert len(seeds) == 3


@pytest.mark.parametrize("seed", ["-1", "18446744073709551616", "1.5", "x", " 1", "１"])
def test_what_is_no_seed_is_refused(seed: str) -> None:
    with pytest.raises(SpecError, match="seed"):
        shuffle("in-@1.tar", "out-@1.tar", seed=seed)


# Nothing but inputs, options and seed


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Twelve shards, and what a shuffle of them by one worker from plain files writes."""
    folder = tmp_path_factory.mktemp("wanted")
    for shard in range(12):
        pairs = pairs_of(shard, 3 + 2 * shard, 10 * shard)
        for extension, pack in (("tar", bytes), ("tar.gz", gzip.compress), ("tar.zst", zstandard.compress)):
            (folder / f"in-{shard:02}.{extension}").write_bytes(pack(tars.ustar(pairs)))
    shuffle(folder / "in-@12.tar", folder / "out-@5.tar", plan="local", seed="3")
    return folder, bytes_of(folder)


@pytest.mark.parametrize(
    ("plan", "workers"),
    [(plan, workers) for plan in PLANS for workers in (1, 2, 8) if plan != "memory" or workers == 1],  # which has one
)
def test_bytes_do_not_depend_on_plan_or_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[Path, dict[str, bytes]], plan: str, workers: int
) -> None:
    one_shard_a_task(monkeypatch)
    folder, expected = wanted
    shuffle(folder / "in-@12.tar", tmp_path / "out-@5.tar", plan=plan, workers=workers, seed="3")
    assert bytes_of(tmp_path) == expected


@pytest.mark.parametrize("extension", ["tar", "tar.gz", "tar.zst"])
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_bytes_do_not_depend_on_the_compression_of_inputs(
    tmp_path: Path, wanted: tuple[Path, dict[str, bytes]], plan: str, extension: str
) -> None:
    folder, expected = wanted
    shuffle(folder / f"in-@12.{extension}", tmp_path / "out-@5.tar", plan=plan, seed="3")
    assert bytes_of(tmp_path) == expected


def test_local_is_refused_for_what_cannot_be_copied_from(tmp_path: Path) -> None:
    (tmp_path / "in-0.tar.gz").write_bytes(gzip.compress(tars.ustar(pairs_of(0))))
    with pytest.raises(SpecError, match="local"):
        shuffle(tmp_path / "in-@1.tar.gz", tmp_path / "out-@1.tar", plan="local")


# A fair order


def permutations(folder: Path, seeds: int, shards: int, samples: int) -> list[list[int]]:
    """For each seed, which sample of the input stands at each place of the output."""
    source = put_shards(folder, shards, samples, 0)
    place = {f"s{shard}-{n:03d}": shard * samples + n for shard in range(shards) for n in range(samples)}
    found = []
    for seed in range(seeds):
        shuffle(source, folder / "out-@.tar", seed=str(seed), exists="overwrite", num_shards=shards)
        found.append([place[key] for key in keys_in(folder / "out-@.tar")])
    return found


def test_orders_over_many_seeds_look_like_draws_of_uniform_permutations(tmp_path: Path) -> None:
    """Each figure is a mean over the seeds and lies within four standard errors of that of a uniform permutation."""
    seeds, shards, samples = 50, 4, 20
    count = shards * samples
    drawn = permutations(tmp_path, seeds, shards, samples)

    # How many samples went from each input shard into each output shard: sum of chi-squares, each of nine degrees.
    flows = 0.0
    for order in drawn:
        cells = Counter((sample // samples, place // samples) for place, sample in enumerate(order))
        fair = samples / shards
        flows += sum((cells[i, j] - fair) ** 2 / fair for i in range(shards) for j in range(shards))
    degrees = (shards - 1) ** 2 * count / (count - 1)
    assert abs(flows / seeds - degrees) < 4 * math.sqrt(2 * degrees / seeds)

    # Where each sample stands over all seeds: none prefers a quarter.
    quarters = Counter((sample, place // samples) for order in drawn for place, sample in enumerate(order))
    each = seeds / shards
    chi_square = sum((quarters[s, q] - each) ** 2 / each for s in range(count) for q in range(shards))
    degrees = (count - 1) * (shards - 1)
    assert abs(chi_square - degrees) < 4 * math.sqrt(2 * degrees)

    # How far samples move: (n^2 - 1) / 3n on average, with the spread of |i - j| for independent places.
    moved = sum(abs(place - sample) for order in drawn for place, sample in enumerate(order)) / (seeds * count)
    mean = (count * count - 1) / (3 * count)
    spread = count * math.sqrt(1 / 6 - 1 / 9)
    assert abs(moved - mean) < 4 * spread / math.sqrt(seeds * count)

    # Neighbours stay together about once in a permutation (Poisson).
    kept = sum(two == one + 1 for order in drawn for one, two in itertools.pairwise(order))
    assert abs(kept / seeds - (count - 1) / count) < 4 / math.sqrt(seeds)

    # Neighbouring seeds have nothing to do with each other.
    same = sum(one[place] == two[place] for one, two in itertools.pairwise(drawn) for place in range(count))
    assert abs(same / (seeds - 1) - 1) < 4 / math.sqrt(seeds - 1)


def test_all_orders_of_few_samples_come_equally_often(tmp_path: Path) -> None:
    orders = Counter(map(tuple, permutations(tmp_path, 90, 1, 3)))
    assert len(orders) == 6
    assert sum((times - 15) ** 2 / 15 for times in orders.values()) < 20.5  # chi-square of 5 degrees, p = 0.001


# Cuts


def equal_samples(folder: Path, count: int, size: int = 10) -> str:
    """One shard with so many samples of one member each, of the same size."""
    return put_records(folder / "in-0.tar", [{"__key__": f"k{n:05d}", "t": b"x" * size} for n in range(count)])


@every_plan
@pytest.mark.parametrize(
    ("count", "each", "sizes"), [(20, 7, [7, 7, 6]), (20, 10, [10, 10]), (3, 100, [3]), (0, 5, [])]
)
def test_samples_per_shard_is_exact(tmp_path: Path, plan: str, count: int, each: int, sizes: list[int]) -> None:
    shuffle(equal_samples(tmp_path, count), tmp_path / "out-@.tar", plan=plan, samples_per_shard=each)
    assert sizes_in(tmp_path / "out-@.tar") == sizes
    assert sorted(bytes_of(tmp_path)) == [f"out-{n:06d}.tar" for n in range(len(sizes))]


@every_plan
def test_a_number_of_shards_in_the_name_is_a_number_of_shards(tmp_path: Path, plan: str) -> None:
    source = equal_samples(tmp_path, 220)
    shuffle(source, tmp_path / "out-@200.tar", plan=plan)
    sizes = sizes_in(tmp_path / "out-@200.tar")
    assert (len(sizes), set(sizes)) == (200, {1, 2})
    assert sorted(bytes_of(tmp_path)) == [f"out-{n:03d}.tar" for n in range(200)]


def test_two_thousand_shards_are_written(tmp_path: Path) -> None:
    shuffle(equal_samples(tmp_path, 2000), tmp_path / "out-@2000.tar")
    assert sizes_in(tmp_path / "out-@2000.tar") == [1] * 2000
    assert {len(name) for name in bytes_of(tmp_path)} == {len("out-0000.tar")}


@every_plan
def test_num_shards_are_balanced_to_one_sample(tmp_path: Path, plan: str) -> None:
    shuffle(equal_samples(tmp_path, 23), tmp_path / "out-@.tar", plan=plan, num_shards=5)
    assert sorted(sizes_in(tmp_path / "out-@.tar")) == [4, 4, 5, 5, 5]


def test_as_many_shards_come_out_as_went_in_when_nothing_is_said(tmp_path: Path) -> None:
    put_shards(tmp_path, 3, 5)
    shuffle(tmp_path / "in-@3.tar", tmp_path / "out-@.tar")
    assert sizes_in(tmp_path / "out-@.tar") == [5, 5, 5]


@every_plan
@pytest.mark.parametrize("how", ["pattern", "option"])
def test_fewer_samples_than_shards_need_leave(tmp_path: Path, plan: str, how: str) -> None:
    source = equal_samples(tmp_path, 3)
    output, fields = ("out-@5.tar", {}) if how == "pattern" else ("out-@.tar", {"num_shards": 5})
    with pytest.raises(UsageError, match="--empty-shards"):
        shuffle(source, tmp_path / output, plan=plan, **fields)
    assert bytes_of(tmp_path) == {}
    shuffle(source, tmp_path / output, plan=plan, empty_shards=True, **fields)
    assert sorted(sizes_in(tmp_path / output)) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("fields", [{"samples_per_shard": 2}, {"shard_size": 5000}, {"num_shards": 3}])
def test_a_count_in_the_name_and_another_rule_are_refused(tmp_path: Path, fields: dict[str, int]) -> None:
    with pytest.raises(SpecError, match=r"leave the count open"):
        shuffle(equal_samples(tmp_path, 9), tmp_path / "out-@4.tar", **fields)


@pytest.mark.parametrize("fields", [{"samples_per_shard": 2, "shard_size": 5}, {"num_shards": -1}, {"shard_size": -5}])
def test_rules_that_cannot_work_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        shuffle("in-@1.tar", "out-@.tar", **fields)


SIZES = st.lists(st.sampled_from([0, 1, 400, 512, 513, 3000, 20_000]), min_size=1, max_size=25)


@settings(max_examples=15)
@given(SIZES, st.sampled_from([2048, 3000, 5120, 10_000, 50_000]), st.sampled_from(PLANS))
def test_no_shard_is_larger_than_asked_unless_one_sample_is(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, plan: str
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    put_records(folder / "in-0.tar", [{"__key__": f"k{n}", "t": b"x" * size} for n, size in enumerate(sizes)])
    shuffle(folder / "in-0.tar", folder / "out-@.tar", plan=plan, shard_size=limit)
    for data, count in zip(bytes_of(folder).values(), sizes_in(folder / "out-@.tar"), strict=True):
        assert count >= 1
        assert len(data) <= limit or count == 1


def test_shards_are_filled_well_where_samples_are_small(tmp_path: Path) -> None:
    shuffle(equal_samples(tmp_path, 1000), tmp_path / "out-@.tar", shard_size=101_024)
    sizes = sizes_in(tmp_path / "out-@.tar")
    assert all(size >= 95 for size in sizes[:-1])  # of 98 that fit


def test_shard_size_counts_bytes_before_compression(tmp_path: Path) -> None:
    shuffle(equal_samples(tmp_path, 100), tmp_path / "out-@.tar.gz", shard_size=20_000)
    assert len(sizes_in(tmp_path / "out-@.tar.gz")) > 5
    for data in bytes_of(tmp_path).values():
        assert len(gzip.decompress(data)) <= 20_000


@pytest.mark.parametrize("cut", [{"samples_per_shard": 3}, {"shard_size": 9000}, {"num_shards": 4}, {}])
def test_every_plan_cuts_at_the_same_places(tmp_path: Path, cut: dict[str, int]) -> None:
    for shard in range(3):
        records = [{"__key__": f"s{shard}-{n}", "t": b"x" * (700 * n)} for n in range(7)]
        put_records(tmp_path / f"in-{shard}.tar", records)
    found = []
    for plan in PLANS:
        shuffle(tmp_path / "in-@3.tar", tmp_path / plan / "out-@.tar", plan=plan, seed="1", **cut)
        found.append(bytes_of(tmp_path / plan))
    assert all(one == found[0] for one in found)


def test_numbers_grow_wider_rather_than_collide(tmp_path: Path) -> None:
    shuffle(equal_samples(tmp_path, 12), tmp_path / "out-@.tar", samples_per_shard=1)
    assert len(bytes_of(tmp_path)) == 12
    shuffle(equal_samples(tmp_path, 12), tmp_path / "b" / "x-{00..11}.tar")
    assert sorted(bytes_of(tmp_path / "b", "x*")) == [f"x-{n:02d}.tar" for n in range(12)]


# Equal keys


def duplicates(folder: Path, copies: int = 4, shards: int = 3) -> str:
    """Shards that all hold the same key several times, not side by side, and another one between."""
    for shard in range(shards):
        records = []
        for n in range(copies):
            records += [
                {"__key__": "same", "t": b"%d %d" % (shard, n)},
                {"__key__": f"other-{shard}-{n}", "t": b"o%d %d" % (shard, n)},
            ]
        put_records(folder / f"in-{shard}.tar", records)
    return f"{folder}/in-@{shards}.tar"


@every_plan
def test_samples_of_equal_keys_are_kept_and_every_reader_tells_them_apart(tmp_path: Path, plan: str) -> None:
    source = duplicates(tmp_path)
    report = shuffle(source, tmp_path / "out-@2.tar", plan=plan, seed="5")
    assert report.counts.renamed > 0
    before = [record for shard in range(3) for record in records_in(tmp_path / f"in-{shard}.tar")]
    after = samples_in(tmp_path / "out-@2.tar")
    assert multiset(after, keys=False) == multiset(before, keys=False)
    assert sum(record["__key__"].startswith("same-") for record in after) == report.counts.renamed
    for name, data in bytes_of(tmp_path).items():
        ours = records_in(tmp_path / name)
        assert tars.webdataset_listing(data) == ours
        assert tars.samples_of(tars.tarfile_listing(data)) == ours


def test_equal_keys_side_by_side_are_refused_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="'same'") as caught:
        shuffle(duplicates(tmp_path), tmp_path / "out-@2.tar", seed="5", same_key="fail")
    assert "--same-key rename" in caught.value.message
    assert not (tmp_path / "out.manifest.json").exists()


def test_equal_keys_that_do_not_meet_are_kept_as_they_are(tmp_path: Path) -> None:
    source = duplicates(tmp_path, copies=1, shards=2)
    report = shuffle(source, tmp_path / "out-@4.tar", same_key="fail")
    assert report.counts.renamed == 0
    assert Counter(keys_in(tmp_path / "out-@4.tar"))["same"] == 2


@every_plan
@pytest.mark.parametrize("tool", ["shuffle", "sort"])
def test_equal_keys_with_other_fields_can_be_read_wherever_they_stand(tmp_path: Path, plan: str, tool: str) -> None:
    """Keys that begin anew in each shard, and a field that some samples lack."""
    for shard in range(4):
        records = []
        for n in range(8):
            more = {"cls": b"1"} if n % 4 == shard else {}
            records.append({"__key__": f"{n:03d}", **more, "t": b"%d %d" % (shard, n)})
        put_records(tmp_path / f"in-{shard}.tar", records)
    before = [record for shard in range(4) for record in records_in(tmp_path / f"in-{shard}.tar")]
    if tool == "shuffle":
        shuffle(tmp_path / "in-@4.tar", tmp_path / "out-@2.tar", plan=plan, seed="1")
    else:
        sort(tmp_path / "in-@4.tar", tmp_path / "out-@2.tar", plan=plan, keys="t")
    assert multiset(samples_in(tmp_path / "out-@2.tar"), keys=False) == multiset(before, keys=False)


@every_plan
def test_only_renamed_samples_are_written_anew(tmp_path: Path, plan: str) -> None:
    def shard(texts: list[str]) -> bytes:
        return b"".join(tars.member("same.t", text.encode()) + tars.member("same.a", b"") for text in texts)

    for n in range(4):
        (tmp_path / f"in-{n}.tar").write_bytes(shard([f"{n}"]) + tars.END)
    report = shuffle(tmp_path / "in-@4.tar", tmp_path / "out-@1.tar", plan=plan)
    assert report.counts.renamed == 3
    with tarfile.open(tmp_path / "out-0.tar") as archive:
        found = [(member.name, member.mtime) for member in archive]
    assert [name for name, _ in found] == [
        *("same.t", "same.a", "same-1.a", "same-1.t", "same-2.a", "same-2.t", "same-3.a", "same-3.t")
    ]
    assert [time for _, time in found[:2]] == [1_500_000_000] * 2, "the first is copied, with its time"


@every_plan
def test_a_name_that_is_taken_by_the_next_sample_is_told_from_it(tmp_path: Path, plan: str) -> None:
    """Renamed samples and samples that really have such names: whatever stands side by side differs."""
    for n, keys in enumerate([["a", "a-1"], ["a", "a-1-1"], ["a-1", "a-2"], ["a", "a-2"]]):
        put_records(tmp_path / f"in-{n}.tar", [{"__key__": key, "t": f"{n} {key}".encode()} for key in keys])
    before = [record for n in range(4) for record in records_in(tmp_path / f"in-{n}.tar")]
    for seed in range(25):
        shuffle(tmp_path / "in-@4.tar", tmp_path / "out-@1.tar", plan=plan, seed=str(seed), exists="overwrite")
        after = samples_in(tmp_path / "out-@1.tar")
        assert multiset(after, keys=False) == multiset(before, keys=False)
    for direction in ("asc", "desc"):
        sort(tmp_path / "in-@4.tar", tmp_path / direction / "out-@1.tar", plan=plan, keys=f"__key__:{direction}")
        assert multiset(samples_in(tmp_path / direction / "out-@1.tar"), keys=False) == multiset(before, keys=False)


@every_plan
def test_a_shard_with_renamed_samples_is_not_larger_than_asked(tmp_path: Path, plan: str) -> None:
    key = "k" * 98  # with the field a name of 100 bytes, which is all that fits into a plain header
    for n in range(20):
        put_records(tmp_path / f"in-{n:02}.tar", [{"__key__": key, "t": b"%d" % n}])
    shuffle(tmp_path / "in-@20.tar", tmp_path / "out-@.tar", plan=plan, shard_size=8192)
    assert sum(sizes_in(tmp_path / "out-@.tar")) == 20
    assert max(map(len, bytes_of(tmp_path).values())) <= 8192


# Refused before work


@pytest.mark.parametrize("output", ["out-*.tar", "@list.txt", "-", "out"])
def test_an_output_that_names_no_shards_is_refused(tmp_path: Path, output: str) -> None:
    with pytest.raises(UsageError):
        shuffle(put_shards(tmp_path, 2), output)


@pytest.mark.parametrize("output", ["in-@2.tar", "in-@000002.tar", "sub/../in-@2.tar"])
def test_an_output_that_is_also_an_input_is_refused_and_stays(tmp_path: Path, output: str) -> None:
    (tmp_path / "sub").mkdir()
    source = put_shards(tmp_path, 2)
    before = bytes_of(tmp_path, "in*")
    if output == "in-@000002.tar":
        shuffle(source, tmp_path / output)  # other names: in-000000.tar
    else:
        with pytest.raises(SpecError, match="both input and output"):
            shuffle(source, tmp_path / output, exists="overwrite")
    assert bytes_of(tmp_path, "in-?.tar") == before


@pytest.mark.parametrize(
    ("output", "fields"), [("out-@2.tar", {"level": 3}), ("out-@2.tar.gz", {"level": 99}), ("out-@.tar.lzma4", {})]
)
def test_a_codec_that_cannot_do_that_is_refused(tmp_path: Path, output: str, fields: dict[str, Any]) -> None:
    with pytest.raises(TarmillError):
        shuffle(put_shards(tmp_path, 2), tmp_path / output, **fields)
    assert bytes_of(tmp_path) == {}


def test_outputs_of_nobody_are_not_overwritten(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 2)
    (tmp_path / "out-1.tar").write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"out-1\.tar"):
        shuffle(source, tmp_path / "out-@2.tar")
    with pytest.raises(OutputExistsError, match=r"out-1\.tar"):
        shuffle(source, tmp_path / "out-{0..1}.tar")
    assert bytes_of(tmp_path) == {"out-1.tar": b"precious"}
    assert finished_shards(tmp_path) == []


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 2)
    before = sorted(tmp_path.rglob("*"))
    report = shuffle(source, tmp_path / "new" / "out-@2.tar", options={"dry_run": True})
    assert report.plan_only
    assert sorted(tmp_path.rglob("*")) == before


def test_the_result_is_what_the_reader_reads_in_one_stream(tmp_path: Path) -> None:
    """Output shards joined byte by byte are one archive of all samples."""
    source = put_shards(tmp_path, 3, 6)
    shuffle(source, tmp_path / "out-@2.tar")
    joined = b"".join(bytes_of(tmp_path).values())
    assert len(list(iter_samples(io.BytesIO(joined), "joined.tar"))) == 18
    assert sum(map(len, read_back(tmp_path / "out-@2.tar"))) == 18
