"""Records decide what is compiled: by the files alone, the default wherever nothing is gained."""

import json
import math

import pytest

import intformer.tuning_logs
from intformer.backends.targets import TARGETS
from intformer.errors import CompileError
from intformer.passes.form import Form
from intformer.tuning import records
from intformer.tuning.records import Choice, Logs, versions
from intformer_testing.kernels import Chain, Program, lowered, on_every_target

A, B, C = ((("tile", 82),), (("tile", 44),), (("tile", 81),))
RULE = [(None, dict(A))]


def test_a_single_version_where_one_is_best_everywhere():
    known = {1: {A: 2.0, B: 1.0}, 16: {A: 20.0, B: 10.0}}
    assert versions(known, RULE) == [(None, {"tile": 44})]


def test_the_default_stays_where_nothing_is_gained():
    known = {1: {A: 1.0, B: 0.98}, 16: {A: 10.0, B: 9.75}}
    assert versions(known, RULE) == [(None, {"tile": 82})]


def test_two_versions_where_both_pay():
    known = {1: {A: 2.0, B: 1.0}, 16: {A: 10.0, B: 10.1}, 128: {A: 80.0, B: 100.0}}
    assert versions(known, RULE) == [(math.isqrt(16), {"tile": 44}), (None, {"tile": 82})]


def test_never_more_than_two_versions():
    known = {1: {A: 1, B: 2, C: 2}, 16: {A: 2, B: 1, C: 2}, 128: {A: 2, B: 2, C: 1}}
    found = versions(known, RULE)
    assert len(found) == records.MOST_VERSIONS == 2
    assert found[-1][0] is None


def test_the_choice_does_not_depend_on_the_order_of_records():
    known = {1: {A: 2.0, B: 1.0, C: 1.0}, 16: {A: 9.0, B: 10.0, C: 10.0}}
    turned = {b: dict(reversed(row.items())) for b, row in reversed(known.items())}
    assert versions(known, RULE) == versions(turned, RULE)


def test_a_rule_of_several_versions_stays_as_it_is_unless_something_is_gained():
    rule = [(3, dict(B)), (20, dict(A)), (None, dict(C))]
    known = {1: {A: 2, B: 1, C: 2}, 16: {A: 1, B: 2, C: 2}, 128: {A: 2, B: 2, C: 1}}
    assert versions(known, rule) == rule
    known[128][A] = 0.5
    assert versions(known, rule) == [(math.isqrt(16), dict(B)), (None, dict(A))]
    known[16][C] = 0.1  # worth it there, and in the sum
    assert versions(known, rule)[1:] == [(math.isqrt(16 * 128), dict(C)), (None, dict(A))]


def test_a_rule_is_not_left_for_what_is_slower_in_the_sum():
    rule = [(3, dict(B)), (None, dict(A))]
    known = {1: {A: 2.0, B: 1.0, C: 1.5}, 16: {A: 1.0, B: 2.0, C: 0.9}}
    assert versions(known, rule) == [(4, dict(B)), (None, dict(C))]
    del known[1][B], known[16][B]  # it was not measured
    assert versions(known, rule) == [(None, dict(C))]


def form_and_space():
    found = []
    spec = TARGETS["cascadelake"]
    g = Chain(("matmul", "requantize"), 64, 64).graph

    def choose(form):
        found.append(form)
        return [(None, {})]

    lowered(g, "cascadelake", choose=choose)
    form = found[-1]
    return g, form, form.space(spec)


def logs_of(form, table):
    return Logs("test", {form.text: table})


def test_records_of_values_that_are_no_candidates_any_more_do_not_count():
    _, form, space = form_and_space()
    default = tuple(sorted((name, values[0]) for name, values in space.items()))
    rule = [(None, dict(default))]
    gone = tuple(sorted({**dict(default), "tile": 99}.items()))
    assert logs_of(form, {1: {gone: 1.0}}).choose(form, space, rule) is None
    found = logs_of(form, {1: {gone: 1.0, default: 2.0}}).choose(form, space, rule)
    assert found == [(None, dict(default))]
    assert logs_of(form, {}).choose(form, space, rule) is None
    assert Logs().choose(Form("{}"), space, [(None, {})]) is None


def test_records_outlive_decisions_that_come_and_go():
    _, form, space = form_and_space()
    default = {name: values[0] for name, values in space.items()}
    rule, old = [(None, default)], {**default, "tile": 81, "dropped": 3}
    del old["prefetch"]
    known = {1: {tuple(sorted(old.items())): 1.0, tuple(sorted(default.items())): 2.0}}
    found = logs_of(form, known).choose(form, space, rule)
    assert found == [(None, {**default, "tile": 81})]


def test_a_candidate_counts_where_it_was_measured_at_every_row_count():
    _, form, space = form_and_space()
    default = tuple(sorted((name, values[0]) for name, values in space.items()))
    rule = [(None, dict(default))]
    near = tuple(sorted({**dict(default), "prefetch": 512}.items()))
    table = {1: {default: 2.0, near: 1.0}, 16: {default: 3.0}}
    assert logs_of(form, table).choose(form, space, rule) == [(None, dict(default))]


@on_every_target
def test_what_is_chosen_is_compiled_and_reported(target):
    if target == "sapphirerapids":
        pytest.skip("its matmuls have decisions of their own")
    spec = TARGETS[target]
    chain = Chain(("matmul", "requantize"), 64, 64)
    forms = {}
    g = chain.graph
    lowered(g, target, choose=lambda form: forms.setdefault(form.name, form) and [(None, {})])
    space = forms["dense"].space(spec)
    default = {name: values[0] for name, values in space.items()}
    few, many = {**default, "order": 1, "columns": 2}, {**default, "columns": 4}
    if spec.backend.launched:
        few, many = {**default, "tile": 2}, {**default, "depth": 32}
    keys = [tuple(sorted(d.items())) for d in (default, few, many)]
    table = {
        1: dict(zip(keys, (3.0, 1.0, 2.0), strict=True)),
        16: dict(zip(keys, (3.0, 2.0, 1.0), strict=True)),
    }
    choice = Choice(logs_of(forms["dense"], table), spec)
    program = Program(g, target, choose=choice)
    program.check(chain.arrays)
    report = choice.report({"dense_0": forms["dense"], "given_0": forms["given"]})
    assert report["tuned"] == 1 and report["kernels"] == 2
    assert report["versions"] == {"dense_0": [(4, few), (None, many)]}


def test_missing_logs_are_an_error_and_packaged_ones_may_lack_a_target(tmp_path, monkeypatch):
    with pytest.raises(CompileError, match="no tuning logs"):
        records.read(tmp_path / "typo", "cascadelake")
    assert not (tmp_path / "typo").exists()
    assert records.read("none", "cascadelake").seconds == {}
    monkeypatch.setattr(intformer.tuning_logs, "__file__", str(tmp_path / "__init__.py"))
    assert records.read("packaged", "cascadelake").seconds == {}


def test_damaged_logs_are_an_error(tmp_path):
    folder = tmp_path / "cascadelake"
    folder.mkdir()
    for name in records.FILES:
        (folder / name).write_text("no JSON\n")
    with pytest.raises(CompileError, match="cannot be read"):
        records.read(tmp_path, "cascadelake")


def test_another_tvm_and_missing_provenance_are_warnings(tmp_path):
    assert records.check_provenance(tmp_path) == [
        "tuning logs without provenance: provenance.json cannot be read"
    ]
    (tmp_path / "provenance.json").write_text(json.dumps({"runs": [{"tvm": "0.9"}]}))
    (note,) = records.check_provenance(tmp_path)
    assert note.startswith("tuning logs of TVM 0.9, this is 0.")
