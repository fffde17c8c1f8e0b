"""Going on with a run: which of its values are taken over, and what may not be another than it was.

What computes the run, its keys and the content of its inputs, is held against what the newest checkpoint says. Where a file
lies and what it is called does not count. `eval.*`, `data.epochs` and `optim.lr` may change when the command line or CONFIG
sets them; with `checkpoint.accept_changes=true` everything may that the state in the checkpoint has room for.
"""

from dataclasses import dataclass

from jaxgrpo.config import INPUT_KEYS, Config, ConfigError, differing_keys, flatten, is_changeable, replace
from jaxgrpo.train.sizes import adopt
from jaxgrpo.train.stored import Stored

SUITE = "eval.suites."  # and the name of a suite: its questions
_STATE_KEYS = ("optim.optimizer", "optim.warmup_updates")  # the second in whether it is 0
START = "start"  # the weights that training starts from, after the warm-up


class ChangedError(ConfigError):
    """The run was made with other inputs or settings."""

    on_all_hosts = True


@dataclass(frozen=True)
class Changes:
    """What is another than it was: `free` may be, `bound` only where accepted, `form` never, since the saved state has no room
    for it."""

    free: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    form: tuple[str, ...] = ()


def continued(config: Config, stored: Stored, given: set[str] | None, devices: int) -> tuple[Config, list[str]]:
    """`config` with the automatic values of the run, and with its values of changeable keys that neither the command line nor
    CONFIG sets (given: those that they set, None for all); and what was so kept, to be told."""
    mine, theirs = flatten(config), flatten(stored.config)
    unset = [k for k in mine if is_changeable(k) and given is not None and k not in given and mine[k] != theirs[k]]
    config = adopt(config, stored.config, devices, with_tokenizer=stored.inputs is None)
    if config.data.epochs != stored.config.data.epochs and not mine["train.steps"] and "data.epochs" not in unset:
        config = replace(config, {"train.steps": 0})
    return replace(config, {key: theirs[key] for key in unset}), [f"{key}={theirs[key]}" for key in unset]


def find_changes(config: Config, inputs: dict[str, dict], stored: Stored) -> Changes:
    """How `config` and those of its inputs that are fingerprinted so far differ from the run's."""
    mine, theirs = flatten(config), flatten(stored.config)
    keys = differing_keys(config, stored.config)
    if stored.inputs is not None:
        keys = [key for key in keys if key not in INPUT_KEYS]
    keys = [key for key in keys if key != "family" or theirs[key]]  # a run from before that was a key has none in its config
    said = {key: f"{key}: {theirs[key]} -> {mine[key]}" for key in keys}
    free = [text for key, text in said.items() if is_changeable(key)]
    form = [said[key] for key in keys if key in _STATE_KEYS and bool(mine[key]) != bool(theirs[key]) or key == _STATE_KEYS[0]]
    bound = [text for key, text in said.items() if not is_changeable(key) and text not in form]
    for name, now in inputs.items():
        then = (stored.inputs or {}).get(name)
        if stored.inputs is None or (then is None and name.startswith((SUITE, START))):
            continue
        if then is None or then["digest"] != now["digest"]:
            asked_otherwise = name.startswith(SUITE) and {"eval.data", "eval.suites"} & set(keys)
            other_form = then and then.get("architecture") != now.get("architecture")
            (form if other_form else free if asked_otherwise else bound).append(_other_content(name, then, now))
    gone = [key for key in INPUT_KEYS if key in (stored.inputs or {}) and not mine[key] and key != "data.tokenizer"]
    bound += [f"{key}: {stored.inputs[key]['name']} -> none" for key in gone]
    return Changes(tuple(free), tuple(bound), tuple(form))


def _other_content(name: str, then: dict | None, now: dict) -> str:
    if name == START:
        return "warm_start: other weights than those the run started from"
    if then is None:
        return f"{name}: none -> {now['name']}"
    if then.get("architecture") != now.get("architecture"):
        return f"{name}: {then['name']} -> {now['name']}, of another architecture"
    moved = now["name"] if then["name"] == now["name"] else f"{then['name']} -> {now['name']}"
    pinned = f" (it was revision {then['revision']}: pin it as NAME@REVISION)" if then.get("revision") else ""
    return f"{name}: {moved}, with other content{pinned}"


def refuse(changes: Changes, stored: Stored, run_dir: str, accept: bool) -> None:
    """ChangedError for changes that cannot be, or that nobody accepted."""
    if changes.form and stored.step is not None:
        raise ChangedError(
            f"run_dir={run_dir} cannot go on from {stored.where} with a state of another form ({'; '.join(changes.form)}): "
            "choose another run_dir."
        )
    if (bound := changes.bound + changes.form) and not accept:
        raise ChangedError(
            f"run_dir={run_dir} holds a run of another config or of other inputs, says {stored.where} ({'; '.join(bound)}): "
            "bring the old ones back, choose another run_dir, or, if you mean it, go on all the same with "
            "checkpoint.accept_changes=true, which is written into history.jsonl there."
        )
