"""A causal language model: token ids for targets, padding and prompts that do not count.

    python examples/causal_lm.py

Each sequence is a prompt of random tokens, an answer that follows a Markov chain, and padding. A
table of bigram logits is trained on the answers alone:

- ``shift=1`` pairs the logits of position t with token t + 1: the ids are the targets as they are,
  nothing is cut or copied. It is compared with cutting by hand.
- ``ignore_index`` leaves out padding, ``sample_weight`` the prompt. Like the targets, both stand
  where the predicted token is. A second table is trained with the prompts counted: it takes the
  most probable token as often right, but its probabilities are worse.
- Accuracy and perplexity come from ``return_stats=True``, out of the pass of the loss. Perplexity
  is that of the log-probabilities, whatever γ is. What the chain itself reaches stands beside it.

γ is 0: a language model that begins from nothing gains little by a larger one (see the README).
"""

import numpy as np

import gce

VOCABULARY, PAD, PROMPT = 24, 0, 8
BATCH, LENGTH = 200, 32


def sequences(rng, chain):
    """Token ids [B, T], and which of them are the answer's."""
    ids = rng.integers(1, VOCABULARY, (BATCH, LENGTH))
    for t in range(PROMPT, LENGTH):
        u = rng.random((BATCH, 1))
        ids[:, t] = (chain[ids[:, t - 1]].cumsum(axis=1) < u).sum(axis=1).clip(1, VOCABULARY - 1)
    position = np.arange(LENGTH)
    ids[position >= rng.integers(PROMPT + 4, LENGTH + 1, (BATCH, 1))] = PAD
    return ids, (position >= PROMPT) & (ids != PAD)


def accuracy_and_perplexity(stats, ids, counted):
    """Of the tokens that count."""
    accuracy = (stats.argmax == ids)[counted].mean()
    return accuracy, np.exp(-stats.target_log_prob[counted].mean(dtype=np.float64))


def train(ids, counted, steps=151, learning_rate=40.0):
    """Fit the table by gradient descent on all sequences; accuracy and perplexity of some steps."""
    table = np.zeros((VOCABULARY, VOCABULARY), dtype=np.float32)
    log = {}
    options = {"shift": 1, "ignore_index": PAD, "sample_weight": counted.astype(np.float32)}
    for step in range(steps):
        logits = table[ids]  # [B, T, V]
        _, grad, stats = gce.loss_and_grad(
            logits, ids, 0.0, out=logits, return_stats=True, **options
        )
        if step % 50 == 0:
            log[step] = accuracy_and_perplexity(stats, ids, counted)
        slope = np.zeros_like(table)
        np.add.at(slope, ids, grad)  # the row of a token gets the gradients of all its positions
        table -= learning_rate * slope
    return table, log


def main(seed=0):
    """Print each comparison, and return its numbers."""
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(VOCABULARY - 1, 0.1), VOCABULARY)
    chain = np.pad(chain, ((0, 0), (1, 0)))  # nothing leads to padding
    ids, answer = sequences(rng, chain)

    logits = rng.standard_normal((BATCH, LENGTH, VOCABULARY)).astype(np.float32)
    mask = answer.astype(np.float32)
    loss, grad = gce.loss_and_grad(logits, ids, 0.1, shift=1, ignore_index=PAD, sample_weight=mask)
    cut_loss, cut_grad = gce.loss_and_grad(
        logits[:, :-1], ids[:, 1:], 0.1, ignore_index=PAD, sample_weight=mask[:, 1:]
    )
    same = np.array_equal(grad[:, :-1], cut_grad) and not grad[:, -1].any()
    print(f"shift=1: loss {loss:.6f}; cut by hand: {cut_loss:.6f}; the same gradient: {same}")
    of_prompt = abs(grad[:, : PROMPT - 1]).max()  # row t predicts token t + 1
    print(f"gradient of the prompt: {of_prompt:.1f}, of the rest up to {abs(grad).max():.1e}")

    by_answers, log = train(ids, answer)
    for step, (accuracy, perplexity) in log.items():
        print(f"step {step:3}: accuracy {accuracy:.3f}, perplexity {perplexity:.2f}")

    tables = {
        "trained on answers": by_answers,
        "trained on everything": train(ids, ids != PAD)[0],
        "the chain itself": np.log(np.maximum(chain, 1e-30)).astype(np.float32),
    }
    results = {"losses": (loss, cut_loss), "same": same, "of_prompt": of_prompt, "log": log}
    new, counted = sequences(rng, chain)
    for name, table in tables.items():
        stats = gce.row_stats(table[new], new, shift=1, ignore_index=PAD)
        accuracy, perplexity = results[name] = accuracy_and_perplexity(stats, new, counted)
        print(f"{name:21} on new answers: accuracy {accuracy:.3f}, perplexity {perplexity:.2f}")
    return results


if __name__ == "__main__":
    main()
