"""Which test proves which fault, and the printed table. A test of fault X9 is called `test_fault_X9_…`."""

import ast
import re
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
NAME = re.compile(r"test_fault_([A-G]\d+)_")

FAULTS = {
    "A1": "one broken line in 10 000",
    "A2": "encodings, NUL, surrogates",
    "A3": "nothing to read",
    "A4": "missing or mistyped fields",
    "A5": "all labels masked",
    "A6": "a row without end",
    "A7": "overlap of the splits",
    "A8": "archives cut or hostile",
    "A9": "data changed before a resume",
    "A10": "control tokens in the data",
    "B1": "misspelt keys",
    "B2": "YAML 1.1 scalars",
    "B3": "hostile YAML",
    "B4": "contradictions, random recipes",
    "B5": "targets that match nothing",
    "B6": "recipe changed before a resume",
    "B7": "one writer for a run directory",
    "C1": "mutated safetensors",
    "C2": "pickled adapters",
    "C3": "adapters that are not whole",
    "C4": "adapters with NaN",
    "C5": "adapters of another base",
    "C6": "hostile adapter_config",
    "C7": "code in a model folder",
    "C8": "hostile chat templates",
    "C9": "hostile tokenizers",
    "C10": "merging",
    "C11": "the base after hot swaps",
    "D1": "loss not finite",
    "D2": "gradient or weight not finite",
    "D3": "loss spikes",
    "D4": "out of memory in a step",
    "D5": "loader workers",
    "D6": "random augmentation on resume",
    "D7": "an early-stopped run again",
    "D8": "figures of the whole run",
    "D9": "another thread count",
    "D10": "clock, two at once",
    "E1": "kill -9 at a random instant",
    "E2": "kill -9 at each fsync and rename",
    "E3": "power cut",
    "E4": "disk full",
    "E5": "read-only, quota, EIO",
    "E6": "one bit flipped",
    "E7": "a file missing",
    "E8": "rotation",
    "E9": "resource limits",
    "E10": "signals",
    "E11": "disk budget",
    "E12": "kill while publishing",
    "E13": "format versions",
    "F1": "10 000 requests at once",
    "F2": "slow clients",
    "F3": "disconnects",
    "F4": "hostile requests",
    "F5": "bodies without end",
    "F6": "fields over their limits",
    "F7": "adapter names that lead elsewhere",
    "F8": "broken adapters under load",
    "F9": "hot swaps under load",
    "F10": "keys",
    "F11": "rates and deadlines",
    "F12": "model thread lost",
    "F13": "SIGTERM under load",
    "F14": "memory",
    "F15": "browsers",
    "G1": "HTML in texts",
    "G2": "Markdown, CSV, terminal, bidi",
    "G3": "secrets",
    "G4": "pickles of ours",
}

ELSEWHERE = {
    "A5": ["unit/data/test_inspect.py::test_A5_all_labels_masked_is_fatal"],
    "A10": ["unit/data/test_rows.py::test_a10_control_tokens_in_the_data_stay_text"],
    "B2": ["unit/core/test_strict_yaml.py::test_scalars_are_read_as_meant"],
    "B3": [
        "unit/core/test_strict_yaml.py::test_ambiguous_and_hostile_documents_are_refused_with_a_line",
        "unit/core/test_strict_yaml.py::test_alias_bomb_is_refused_at_once",
    ],
    "B6": ["story/test_whole_runs.py::test_a_changed_recipe_or_data_file_is_refused_on_resume"],
    "C8": ["unit/data/test_rows.py::test_c8_hostile_templates_are_refused_in_time"],
    "D1": ["unit/train/test_loop.py::test_d1_divergence_stops_before_the_step_and_names_the_rows"],
    "D4": ["unit/train/test_loop.py::test_d4_memory_running_out_changes_nothing_but_the_parts"],
    "D6": ["unit/data/test_augmenting.py::test_a3_randomness_belongs_to_the_row_not_to_the_order"],
    "D7": [
        "unit/train/test_loop.py::test_d7_a_finished_run_is_left_alone",
        "story/test_whole_runs.py::test_a_run_has_every_file_of_the_contract_and_is_left_alone_afterwards",
    ],
    "D8": ["unit/train/test_loop.py::test_t7_the_mean_loss_is_over_the_whole_run"],
    "E1": ["story/test_whole_runs.py::test_killed_and_started_again_ends_bitwise_equal"],
    "E7": ["unit/train/test_loop.py::test_e7_a_checkpoint_without_one_file_is_no_checkpoint"],
    "E10": ["story/test_whole_runs.py::test_sigterm_saves_exits_3_and_continues"],
    "E12": ["unit/core/test_atomic.py::test_write_replaces_whole_or_not_at_all"],
    "G1": ["unit/report/test_injection.py::test_no_new_element_or_attribute"],
    "G2": ["unit/report/test_injection.py::test_an_answer_cannot_look_like_our_lines"],
    "G3": ["unit/report/test_injection.py::test_secrets_and_home_stay_out"],
}
"""Tests of other rooms that prove a fault too (under tests/)."""

OPEN = {
    "D5": "not applicable: rows are encoded once and mapped; there are no loader workers to kill",
}


def tests_of(path):
    """Names of the test functions of a file."""
    found = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    return {node.name for node in found if node.name.startswith("test")}


def proofs():
    """fault → where its tests stand."""
    found = defaultdict(list)
    for path in sorted(HERE.glob("test_*.py")):
        for name in sorted(tests_of(path)):
            if match := NAME.match(name):
                found[match[1]].append(f"faults/{path.name}::{name}")
    for fault, places in ELSEWHERE.items():
        found[fault] += places
    return dict(found)


def summed(figures):
    """`10/10` and `5/5` are `15/15`."""
    pairs = [map(int, figure.split("/")) for figure in figures]
    done, of = map(sum, zip(*pairs, strict=True))
    return f"{done}/{of}"


def table(reports):
    """One line for each fault that these reports say something about, and for what is proved elsewhere."""
    counts, figures = defaultdict(lambda: defaultdict(int)), defaultdict(list)
    for report in reports:
        match = NAME.match(report.nodeid.rpartition("::")[2])
        if not match or (report.when != "call" and report.outcome == "passed"):
            continue
        counts[match[1]][report.outcome] += 1
        figures[match[1]] += [value for name, value in report.user_properties if name == "figure"]
    if not counts:
        return []
    lines = []
    for fault, what in FAULTS.items():
        told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts[fault].items()))
        if figures[fault]:
            told += f" ({summed(figures[fault])})"
        if ELSEWHERE.get(fault):
            told += f"{' + ' if told else ''}{len(ELSEWHERE[fault])} elsewhere"
        lines.append(f"{fault:>4}  {what:<36} {told or OPEN.get(fault, 'not run')}")
    return lines
