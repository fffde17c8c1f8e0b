import json
import re

from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import CONFIG, SHORT, jaxgrpo


def test_a_users_own_demonstrations_make_the_start(env, tmp_path):
    """A random model that is shown one answer to every question gives that answer, and is rewarded from step 0 on."""
    model = tmp_path / "model"
    tokenizer = write_tiny_tokenizer(model)
    write_tiny_model(model, vocab=512, layers=2, heads=4, head_dim=16, stop_ids=(tokenizer.eos_token_id,))
    questions = [f"What is {n} - {n - 2}?" for n in range(2, 34)]
    demonstrations, problems = tmp_path / "demonstrations.jsonl", tmp_path / "problems.jsonl"
    demonstrations.write_text("".join(json.dumps({"prompt": q, "response": "\\boxed{2}"}) + "\n" for q in questions[:16]))
    problems.write_text(
        "".join(
            json.dumps(
                {
                    "data_source": "math__difference",
                    "prompt": [{"role": "user", "content": q}],
                    "reward_model": {"ground_truth": "2"},
                    "extra_info": {},
                }
            )
            + "\n"
            for q in questions[16:]
        )
    )
    arguments = [
        f"model={model}",
        f"data.train={problems}",
        f"data.test={problems}",
        "data.max_prompt_tokens=64",
        "rollout.max_new_tokens=16",
        f"warmup.demonstrations={demonstrations}",
        "warmup.steps=30",
        "warmup.batch=16",
        "warmup.check_every=1",
        "train.steps=1",
    ]
    done = jaxgrpo("train", CONFIG, *SHORT, *arguments, f"run_dir={tmp_path / 'run'}", "warmup.stop_pass1=0", env=env)
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"warm-up .* loss ([\d.]+)", done.stdout)]
    assert len(losses) == 30
    assert losses[0] > 2 > 0.1 > losses[-1]
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["test_loss"] <= 0.5
    without = [a for a in arguments if not a.startswith("warmup.demonstrations")]
    refused = jaxgrpo("train", CONFIG, *SHORT, *without, f"run_dir={tmp_path / 'other'}", env=env)
    assert refused.returncode == 2
    assert "warmup.demonstrations" in refused.stderr
