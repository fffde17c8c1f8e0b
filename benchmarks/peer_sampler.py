"""A peer's own sampler, kept warm: one rollout for every line on standard input, its wall and processor seconds on standard
output.

Runs in the peer's environment, not in ours. Usage: peer_sampler.py tunix|transformers FOLDER [options of FOLDER's program],
where FOLDER holds bench_tunix.py and bench_trl.py; the model, the prompts and the sampler's settings are those programs' own.
"""

import os
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


def transformers_sampler() -> Callable[[], None]:
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


def main() -> None:
    which, folder = sys.argv[1:3]
    sys.argv = [sys.argv[0], *sys.argv[3:]]
    sys.path.insert(0, folder)
    answers = os.fdopen(os.dup(1), "w")  # what the libraries print goes to standard error
    os.dup2(2, 1)
    sample = {"tunix": tunix_sampler, "transformers": transformers_sampler}[which]()
    sample()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        sample()
        print(time.perf_counter() - wall, time.process_time() - cpu, file=answers, flush=True)


if __name__ == "__main__":
    main()
