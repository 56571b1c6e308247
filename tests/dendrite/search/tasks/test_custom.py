from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dendrite.errors import InvalidArgument
from dendrite.search.task import Split, Task
from dendrite.search.tasks.custom import PromptError, load_tasks, read_prompts
from dendrite.search.tasks.source import TaskFileError

CLASS = '''
from dendrite.search import Split, Task

class Acrostic(Task):
    """A text whose lines begin with the letters of a word."""

    def __init__(self, word: str, depth: int = 4) -> None:
        if not word:
            raise ValueError("an empty word")
        self.word = word
        self.depth = depth

    @property
    def name(self) -> str:
        return f"acrostic {self.word}"

    @property
    def prompt(self) -> str:
        return f"Write an acrostic of {self.word}.\\n"

    @property
    def split(self) -> Split:
        return Split(16)

    @property
    def max_depth(self) -> int:
        return self.depth

    def is_terminal(self, text: str) -> bool:
        return text.count("\\n") >= len(self.word)

    def reward(self, text: str) -> float:
        return float("".join(line[:1] for line in text.splitlines()) == self.word)

    def value(self, text: str) -> float | None:
        return text.count("\\n") / len(self.word)
'''
REWARD = """
def reward(prompt: str, text: str, answer: str = "4") -> float:
    return float(text.strip() == answer)
"""


def write(folder: Path, text: str, name: str = "my_task.py") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text, "utf-8")
    return file


def one(folder: Path, text: str, **fields: Any) -> Task:
    (task,) = load_tasks(write(folder, text), [fields])
    return task


def test_a_class_takes_the_fields_of_a_line(tmp_path: Path) -> None:
    first, second = load_tasks(write(tmp_path, CLASS), [{"word": "ab"}, {"word": "xyz", "depth": 3}])
    assert (first.name, first.max_depth, second.max_depth) == ("acrostic ab", 4, 3)
    assert first.prompt == "Write an acrostic of ab.\n"
    assert first.split == Split(16)
    assert not first.oracle
    assert not first.is_terminal("a\n")
    assert first.is_terminal("a\nb\n")
    assert first.reward("an\nbe\n") == 1.0
    assert first.reward("an\nan\n") == 0.0
    assert first.value("a\n") == 0.5
    assert first.answer("a\nb\n") == "a\nb"
    assert first.answer("a\n") is None
    assert first.actions("") is None
    assert first.reflect("") is None


def test_what_a_class_defines_beyond_that_is_used(tmp_path: Path) -> None:
    more = """
    oracle = True
    def answer(self, text): return text.upper()
    def actions(self, text): return ["a\\n", "b\\n"]
    def reflect(self, text): return "Why?"
"""
    task = one(tmp_path, CLASS + more, word="ab")
    assert (task.oracle, task.answer("a"), task.reflect("")) == (True, "A", "Why?")
    assert task.actions("") == ["a\n", "b\n"]


def test_a_function_takes_the_fields_that_it_has_parameters_for(tmp_path: Path) -> None:
    lines = [{"prompt": "2+2=", "answer": "4", "id": 7}, {"prompt": "2+3=", "answer": "5"}]
    first, second = load_tasks(write(tmp_path, REWARD), lines)
    assert (first.prompt, second.prompt) == ("2+2=", "2+3=")
    assert (first.name, second.name) == ("my_task 1", "my_task 2")
    assert (first.reward("4\n"), second.reward("4\n"), second.reward("5")) == (1.0, 0.0, 1.0)
    assert first.oracle, "the line holds the answer"
    assert (first.split, first.max_depth) == (Split(), 64)
    assert not first.is_terminal("4\n"), "the model says when"


def test_a_function_that_takes_any_field_gets_all(tmp_path: Path) -> None:
    text = "def reward(prompt, text, **fields): return float(fields == {'a': 1, 'b': [2]})\n"
    assert one(tmp_path, text, prompt="p", a=1, b=[2]).reward("") == 1.0


def test_a_file_of_functions_may_say_more(tmp_path: Path) -> None:
    text = """
from dendrite.search import Split
split = Split(8, ())
max_depth = 3
oracle = False
def reward(prompt, text, end): return 1
def is_terminal(prompt, text, *, end): return text.endswith(end)
"""
    task = one(tmp_path, text, prompt="p", end="!")
    assert (task.split, task.max_depth, task.oracle) == (Split(8, ()), 3, False)
    assert task.is_terminal("a!")
    assert not task.is_terminal("a")
    assert task.reward("") == 1.0
    assert isinstance(task.reward(""), float)


def test_without_further_fields_there_is_no_oracle(tmp_path: Path) -> None:
    assert not one(tmp_path, REWARD, prompt="2+2=").oracle
    assert one(tmp_path, REWARD + "oracle = True\n", prompt="2+2=").oracle


@pytest.mark.parametrize(("text", "fields"), [(CLASS, {"word": "ab"}), (REWARD, {"prompt": "2+2=", "answer": "4"})])
def test_a_task_pickles_to_where_the_file_is_not(text: str, fields: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path, text)
    (task,) = load_tasks(file, [fields])
    copy = pickle.loads(pickle.dumps(task))
    assert copy == task
    assert hash(copy) == hash(task)
    (tmp_path / "task").write_bytes(pickle.dumps(task))
    file.unlink()
    program = f"""
import pickle, pathlib
task = pickle.loads(pathlib.Path({str(tmp_path / "task")!r}).read_bytes())
print(task.name, task.reward("a\\nb\\n"), task.reward("4"), sep="|")
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path.root)
    assert out.stdout.strip().split("|") == [task.name, str(task.reward("a\nb\n")), str(task.reward("4"))]


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    tasks = [
        one(tmp_path / folder, f"def reward(prompt, text): return {reward}\n", prompt="p")
        for folder, reward in (("a", 0.25), ("b", 0.75))
    ]
    assert [task.reward("") for task in tasks] == [0.25, 0.75]
    assert [task.reward("") for task in pickle.loads(pickle.dumps(tasks))] == [0.25, 0.75]


@pytest.mark.parametrize("value", ["1.5", "-0.1", "float('nan')", "float('inf')", "'1'", "None", "1j", "[1]"])
def test_a_reward_that_is_no_number_in_0_to_1_is_refused_when_it_is_given(value: str, tmp_path: Path) -> None:
    task = one(tmp_path, f"def reward(prompt, text): return {value}\n", prompt="p")
    with pytest.raises(InvalidArgument, match=r"my_task\.py.*line 1") as caught:
        task.reward("")
    assert caught.value.field == "reward"


@pytest.mark.parametrize("value", ["0", "1", "0.5", "True", "__import__('numpy').float32(0.5)"])
def test_a_reward_may_be_any_number_in_0_to_1(value: str, tmp_path: Path) -> None:
    reward = one(tmp_path, f"def reward(prompt, text): return {value}\n", prompt="p").reward("")
    assert type(reward) is float
    assert reward == float(eval(value))


def test_what_else_a_file_returns_is_checked(tmp_path: Path) -> None:
    task = one(tmp_path, "def reward(prompt, text): return 0\ndef is_terminal(prompt, text): pass\n", prompt="p")
    with pytest.raises(InvalidArgument) as caught:
        task.is_terminal("")
    assert caught.value.field == "is_terminal"
    task = one(tmp_path, CLASS, word="ab")
    with pytest.raises(InvalidArgument) as caught:
        task.value("\n\n\n")
    assert caught.value.field == "value"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "neither"),
        ("from dendrite.search import Task\n", "neither"),
        (CLASS + REWARD, "Acrostic and reward"),
        (CLASS + "class Other(Acrostic):\n    pass\n", "Acrostic and Other"),
        (
            "from dendrite.search import Task\nclass Bare(Task):\n    def reward(self, text): return 0\n",
            "is_terminal, prompt",
        ),
        ("reward = 1\n", "reward must be a function"),
        (REWARD + "is_terminal = True\n", "is_terminal must be a function"),
        (REWARD + "split = '\\n'\n", "split"),
        (REWARD + "max_depth = 0\n", "max_depth"),
        (REWARD + "max_depth = True\n", "max_depth"),
        (REWARD + "oracle = 1\n", "oracle"),
        ("def reward(:\n", "line 1: syntax error"),
    ],
)
def test_a_file_that_defines_no_task_is_refused_even_without_lines(text: str, reason: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(TaskFileError, match=reason) as caught:
        load_tasks(file, [])
    assert caught.value.file == str(file)


def test_an_alias_of_the_class_is_no_other_class(tmp_path: Path) -> None:
    assert one(tmp_path, CLASS + "Alias = Acrostic\n", word="ab").name == "acrostic ab"


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="No such file"):
        load_tasks(tmp_path / "none.py", [])


@pytest.mark.parametrize(
    ("text", "fields", "reason"),
    [
        (CLASS, {}, "Acrostic: missing a required argument: 'word'"),
        (CLASS, {"word": "ab", "size": 3}, "Acrostic: got an unexpected keyword argument 'size'"),
        (CLASS, {"word": ""}, "ValueError: an empty word"),
        (CLASS, {"word": "ab", "depth": 0}, "max_depth=0: must be a whole number"),
        (CLASS, ["ab"], "must be a JSON object"),
        (REWARD, {"answer": "4"}, "missing the field 'prompt'"),
        (REWARD, {"prompt": 4}, "prompt=4: must be a text"),
        (
            "def reward(prompt, text, answer): return 0\n",
            {"prompt": "p"},
            "reward: missing a required argument: 'answer'",
        ),
        ("def reward(text): return 0\n", {"prompt": "p"}, "reward: too many positional arguments"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_number(
    text: str, fields: Any, reason: str, tmp_path: Path
) -> None:
    good = {"word": "ab"} if text is CLASS else {"prompt": "p", "answer": "4"}
    with pytest.raises(PromptError) as caught:
        load_tasks(write(tmp_path, text), [good, fields] if text in (CLASS, REWARD) else [fields])
    assert caught.value.line == (2 if text in (CLASS, REWARD) else 1)
    assert reason in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    file = write(tmp_path, '{"prompt": "a\u2028b"}\n{"prompt": "ü", "n": [1]}\n\n \n', "prompts.jsonl")
    assert read_prompts(file) == [{"prompt": "a\u2028b"}, {"prompt": "ü", "n": [1]}]
    assert read_prompts(write(tmp_path, "\n", "empty.jsonl")) == []
    assert read_prompts(write(tmp_path, '{"a": 1}\r\n{"a": 2}', "windows.jsonl")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('{"a": 1}\n{"a": \n', 2, "is not JSON"),
        ('{"a": 1}\n[1]\n', 2, "must be a JSON object"),
        ('{"a": 1}\n\n{"a": 2}\n', 2, "is blank"),
        ("1\n", 1, "must be a JSON object"),
    ],
)
def test_a_line_that_is_no_object_is_refused_with_its_number(text: str, line: int, reason: str, tmp_path: Path) -> None:
    file = write(tmp_path, text, "prompts.jsonl")
    with pytest.raises(PromptError, match=reason) as caught:
        read_prompts(file)
    assert (caught.value.file, caught.value.line) == (str(file), line)
    assert str(caught.value).startswith(f"{file}, line {line}: ")


def test_a_file_of_prompts_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(PromptError, match="UTF-8"):
        read_prompts(tmp_path / "bad.jsonl")


def test_prompts_and_tasks_go_together(tmp_path: Path) -> None:
    lines = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(5)]
    prompts = write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "prompts.jsonl")
    tasks = load_tasks(write(tmp_path, REWARD), read_prompts(prompts))
    assert [task.reward(str(2 * n)) for n, task in enumerate(tasks)] == [1.0] * 5
