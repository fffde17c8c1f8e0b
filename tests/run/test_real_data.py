import json
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo.data import load_problems
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import ROOT, jaxgrpo, untimed_metrics

DATA = ROOT.parent / "shared" / "data" / "guru_math"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"the published problems are not at {DATA}")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A random Qwen2.5 model of 100 thousand parameters with a byte-level BPE tokenizer and a ChatML template."""
    directory = tmp_path_factory.mktemp("tiny-qwen2.5-base")
    texts = [p.messages[-1]["content"] for p in load_problems(str(DATA / "math__sampled_1_100_512.parquet"))]
    tokenizer = write_tiny_tokenizer(directory, texts, vocab_size=2048)
    sizes = {"vocab": -(-len(tokenizer) // 64) * 64, "layers": 2, "heads": 4, "head_dim": 16, "max_positions": 2048}
    write_tiny_model(directory, stop_ids=(tokenizer.eos_token_id,), **sizes)
    return directory


@pytest.fixture(scope="module")
def run_dir(env, model_dir, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("real") / "run"
    done = jaxgrpo(
        "train",
        "configs/qwen2.5-0.5b.yaml",
        f"model={model_dir}",
        f"run_dir={run_dir}",
        f"data.train={DATA / 'math__sampled_1_100_512.parquet'}",
        f"data.test={DATA / 'math__full_difficulty_ordered_test_500.parquet'}",
        "data.prompts_per_step=8",
        "train.minibatch_prompts=4",
        "train.steps=2",
        "data.max_prompt_tokens=256",
        "rollout.max_new_tokens=16",
        env=env,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return run_dir


def test_two_steps_of_the_published_recipe_run_on_the_published_problems(run_dir):
    metrics = untimed_metrics(run_dir)
    assert [m["step"] for m in metrics] == [0, 1, 2]
    assert metrics[2]["samples"] == 16
    assert all(m["test_n"] > 350 for m in metrics)
    assert metrics[2]["compute_flops"] == 6 * metrics[2]["n_nominal"] * metrics[2]["tokens"]
    for step in range(3):
        outcomes = [json.loads(line) for line in (run_dir / "eval" / f"heldout-{step}.jsonl").read_text().splitlines()]
        assert len(outcomes) == metrics[step]["test_n"]
        assert {"question", "sample", "response", "score", "tokens", "truncated"} <= outcomes[0].keys()


def test_the_exported_model_generates_in_transformers_what_the_engine_generates(run_dir, env, tmp_path):
    torch = pytest.importorskip("torch")
    import jax.numpy as jnp
    import transformers

    from jaxgrpo.model import load_hf
    from jaxgrpo.parallel.mesh import rollout_mesh, trainer_mesh
    from jaxgrpo.rollout.engine import Engine, EngineSettings
    from jaxgrpo.rollout.sampling import Sampling
    from jaxgrpo.rollout.scheduler import Request, generate

    exported = tmp_path / "hf"
    done = jaxgrpo("export", str(run_dir), str(exported), "--dtype", "float32", env=env)
    assert done.returncode == 0, done.stderr
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    reference = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    questions = ["What is 3 + 4?", "Compute $\\sqrt{2}$ to four places and explain each step.", "x"]
    prompts = [
        np.asarray(
            tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False)
        )
        for q in questions
    ]
    model = load_hf(exported, dtype=jnp.float32)
    import jax

    mesh = rollout_mesh(trainer_mesh((1, 1, 1), jax.devices()[:1]), 1)
    stop = (tokenizer.eos_token_id,)
    settings = EngineSettings(slots=3, max_prompt=256, max_new=48, chunk=16, prefill_tokens=256, stop_ids=stop, dtype="float32")
    engine = Engine(model.config, settings, mesh)
    requests = [Request(p, np.zeros((1, 2), np.uint32), Sampling(0.0), 48) for p in prompts]
    ours = generate(engine, engine.load_params(model.params), requests)
    for prompt, (response,) in zip(prompts, ours, strict=True):
        out = reference.generate(torch.tensor(prompt)[None], max_new_tokens=48, do_sample=False, eos_token_id=stop[0])
        assert response.tokens == out[0, len(prompt) :].tolist()
