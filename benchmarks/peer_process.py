"""A peer, kept warm: one rollout or one whole GRPO step for every line on standard input. The answer on standard output is a
line of seconds: wall and processor, for a step then those of its rollout, and the process's peak memory in 10^6 bytes.

Runs in the peer's environment, not in ours. Usage: peer_process.py rollout|step tunix|trl FOLDER [options of FOLDER's program],
where FOLDER holds bench_tunix.py and bench_trl.py; the model, the prompts and all settings are those programs' own. A step is
their own main program, held at the start of every step until the next line comes.
"""

import os
import resource
import sys
import time
from collections.abc import Callable


def tunix_sampler() -> Callable[[], None]:
    """google-tunix: RLCluster.generate with the vanilla sampler, prompts x samples rows at once."""
    import bench_tunix as peer

    task = peer.args
    jax, rl_cluster = peer.jax, peer.rl_cluster
    mesh = jax.sharding.Mesh(peer.np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    length = task.prompt_len + task.new_tokens
    with mesh:
        actor, _ = peer.build_model(task, task.seed)
        reference, _ = peer.build_model(task, task.seed)
        cluster = rl_cluster.RLCluster(
            actor=actor,
            reference=reference,
            tokenizer=peer.WordTokenizer(task.vocab),
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh=dict.fromkeys(roles, mesh),
                rollout_engine="vanilla",
                offload_to_cpu=False,
                training_config=rl_cluster.RLTrainingConfig(
                    actor_optimizer=peer.optax.adamw(task.lr),
                    eval_every_n_steps=10**9,
                    max_steps=10**6,
                    mini_batch_size=task.prompts,
                    train_micro_batch_size=task.prompts,
                    rollout_micro_batch_size=task.prompts,
                    compute_logps_micro_batch_size=task.prompts,
                ),
                rollout_config=peer.base_rollout.RolloutConfig(
                    max_tokens_to_generate=task.new_tokens,
                    max_prompt_length=task.prompt_len,
                    temperature=1.0,
                    top_p=1.0,
                    top_k=None,
                    kv_cache_size=length,
                ),
            ),
        )
    rows = [prompt for prompt in peer.make_prompts(task, task.prompts) for _ in range(task.samples)]

    def sample() -> None:
        with mesh:
            out = cluster.generate(rows)
        assert len(out.tokens) == len(rows) and all(len(tokens) == task.new_tokens for tokens in out.tokens)

    return sample


def trl_sampler() -> Callable[[], None]:
    """transformers: model.generate with its KV cache, prompts x samples rows at once."""
    import bench_trl as peer

    task, torch, transformers = peer.args, peer.torch, peer.transformers
    config = transformers.Qwen2Config(
        vocab_size=task.vocab,
        hidden_size=task.hidden,
        intermediate_size=task.ffn,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        num_key_value_heads=task.kv_heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=task.vocab,
        pad_token_id=0,
    )
    model = transformers.Qwen2ForCausalLM(config).float().eval()
    tokenizer = peer.make_tokenizer(task.vocab)
    ids = torch.tensor([tokenizer(prompt)["input_ids"] for prompt in peer.make_prompts(task, task.prompts)])
    rows = ids.repeat_interleave(task.samples, dim=0)
    mask = torch.ones_like(rows)
    length = task.prompt_len + task.new_tokens

    def sample() -> None:
        with torch.no_grad():
            out = model.generate(
                rows, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=task.new_tokens
            )
        assert out.shape == (len(rows), length)

    return sample


class Gate:
    """Where a step waits for a line and its time is taken."""

    def __init__(self, answers):
        self.answers, self.rollouts, self.start = answers, [], None

    def begin(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self.start = time.perf_counter(), time.process_time()

    def end(self) -> None:
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(wall, cpu, *self.rollouts.pop(), peak, file=self.answers, flush=True)

    def timed(self, base: type) -> type:
        """The peer's own stopwatch around its generate call, whose times are passed on."""
        gate = self

        class Timed(base):
            def __call__(self, *args, **kwargs):
                out = super().__call__(*args, **kwargs)
                gate.rollouts = [self.times[-1]]
                return out

        return Timed


def tunix_steps(gate: Gate) -> None:
    """google-tunix: GRPOLearner; a step ends when the learner asks for the next batch of prompts."""
    import bench_tunix as peer

    class Feed(peer.Feed):
        def mark(self):
            if gate.start is not None:
                gate.end()
            super().mark()
            gate.begin()

    peer.Feed, peer.Timed = Feed, gate.timed(peer.Timed)
    peer.main(peer.args)


def trl_steps(gate: Gate) -> None:
    """TRL: GRPOTrainer with transformers generation; its own callbacks mark the beginning and the end of a step."""
    import bench_trl as peer

    class Clock(peer.Clock):
        def on_step_begin(self, *args, **kwargs):
            gate.begin()
            super().on_step_begin(*args, **kwargs)

        def on_step_end(self, *args, **kwargs):
            super().on_step_end(*args, **kwargs)
            gate.end()

    peer.Clock, peer.Timed = Clock, gate.timed(peer.Timed)
    peer.main(peer.args)


def sample_at_each_line(sample: Callable[[], None], gate: Gate) -> None:
    while True:
        gate.begin()
        sample()
        gate.rollouts = [()]
        gate.end()


def main() -> None:
    part, which, folder = sys.argv[1:4]
    sys.argv = [sys.argv[0], *sys.argv[4:]]
    sys.path.insert(0, folder)
    gate = Gate(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what the libraries print goes to standard error
    if part == "step":
        {"tunix": tunix_steps, "trl": trl_steps}[which](gate)
    else:
        sample_at_each_line({"tunix": tunix_sampler, "trl": trl_sampler}[which](), gate)


if __name__ == "__main__":
    main()
