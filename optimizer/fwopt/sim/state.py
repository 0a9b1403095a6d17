"""Everything the compiled loop reads and writes, as flat arrays.

One record a replica, one record a request in flight (a *slot*), linked by index; -1 ends a list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MIXED = 0
"""vLLM: decodes first, the rest of the token budget goes to prefill chunks in the same step."""
PREFILL_FIRST = 1
"""SGLang: a step is either prefill or decode, prefill goes first."""

LIMITS = np.dtype(
    [
        ("max_seqs", "i8"),
        ("budget", "i8"),
        ("block_size", "i8"),
        ("kv_blocks", "i8"),
        ("policy", "i8"),
        ("closed", "i8"),
        ("prefix", "i8"),
        ("whole_prompts", "i8"),  # no chunked prefill
        ("lookahead", "i8"),
        ("late", "i8"),  # what an ended sequence holds is free one step late, as in `leaving`
        ("aligned", "i8"),  # chunks of prompts end with whole blocks, as in `states`
        ("chunk_floor", "f8"),
        ("step_cpu", "f8"),
        ("sequence_cpu", "f8"),
        ("serial", "f8"),
        ("sequence_serial", "f8"),
        ("prefill_step", "f8"),
        ("beside_step", "f8"),
        ("sequence_blocks", "i8"),
        ("front_request", "f8"),  # the API server's own time for a request, which others wait for,
        ("front_token", "f8"),  # for each of its prompt tokens,
        ("front_chunk", "f8"),  # and for each token that it sends back
        ("request_latency", "f8"),  # on a request's way to the engine, in which nobody waits for it
        ("guessing", "i8"),  # steps as in `speculate`
        ("ahead", "i8"),  # tokens beyond a step's own for which a drafter needs blocks
        ("lookup_token", "f8"),
        ("reserving", "i8"),  # admission as in `reserve`
        ("ratio_first", "f8"),
        ("ratio_least", "f8"),
        ("ratio_decay", "f8"),
        ("reserve_most", "i8"),
        ("retract_steps", "i8"),
        ("evicting", "i8"),  # these three: 0 leaves out what they name
        ("recomputing", "i8"),
        ("over_context", "i8"),
        ("edge0_log", "f8"),
        ("bins_per_log", "f8"),
    ]
)

REPLICA = np.dtype(
    [
        ("clock", "f8"),
        ("decided", "f8"),  # when the next step was put together: later arrivals are not in it
        ("counter", "i8"),  # decode steps done; every decoding sequence advances by one in each
        ("decoding", "i8"),
        ("context_sum", "i8"),  # tokens attended by all decoding sequences in the next step
        ("running", "i8"),  # without those that are leaving, which are in the list too
        ("run_head", "i8"),
        ("run_tail", "i8"),
        ("waiting", "i8"),
        ("wait_head", "i8"),
        ("wait_tail", "i8"),
        ("in_front", "i8"),  # requests that the API server has, the engine not yet
        ("front_head", "i8"),
        ("front_tail", "i8"),
        ("partial", "i8"),  # the one sequence whose prompt is half computed, or -1
        ("half", "i8"),  # where chunks are aligned: sequences whose prompts are half computed
        ("heap", "i8"),
        ("used", "i8"),  # KV blocks referenced by running sequences
        ("peak_used", "i8"),
        ("cached", "i8"),  # KV blocks that nobody references but that still hold a reusable prefix, and junk
        ("lru_head", "i8"),
        ("lru_tail", "i8"),
        ("junk_head", "i8"),
        ("junk_count", "i8"),
        ("stamp", "i8"),
        ("last_finished", "i8"),  # requests that ended with the last step
        ("leaving", "i8"),  # of them, those that still hold their place and blocks,
        ("leaving_head", "i8"),  # in a list with those that had to give up their blocks
        ("leaving_tail", "i8"),
        ("steps", "i8"),
        ("busy_s", "f8"),
        ("batch_s", "f8"),  # sequences in the step x seconds
        ("host_s", "f8"),  # time the GPU waited for the host
        ("preemptions", "i8"),
        # the API server: one queue of requests coming in and tokens going out
        ("front_free", "f8"),  # when it is done with all requests,
        ("front_after", "f8"),  # and with the tokens of the last step too
        ("output_s", "f8"),  # when the last step that made tokens ended,
        ("output_chunks", "i8"),  # and how many it made
        ("shown", "f8"),  # when the client has them
        ("decode_shown", "f8"),  # when it has the last tokens of the decoding sequences,
        ("joined", "i8"),  # but for so many that have begun to decode since, or sat out a step,
        ("joined_shown", "f8"),  # the sum of whose last tokens' times this is
        # admission by reservation
        ("full", "i8"),  # nobody is admitted until someone ends
        ("ratio_base", "f8"),  # share of the tokens still allowed that is reserved, when it was last set,
        ("ratio_steps", "i8"),  # and decode steps since
        ("reserved", "f8"),  # for sequences that decode, in the step that is being put together,
        ("reserved_new", "i8"),  # and for those whose prompt it completes
        # the step that is being put together
        ("step_decodes", "i8"),  # sequences that decode,
        ("step_guessed", "i8"),  # and tokens guessed for them
        ("step_blocks", "i8"),  # new blocks of its decodes
        ("step_missed", "i8"),  # the first that waits would find a state that is just being kept
        ("step_idle", "i8"),  # sequences that decode and sit it out,
        ("step_idle_context", "i8"),  # and what they would attend to
        ("step_chunks", "i8"),
        ("step_tokens", "i8"),  # of its prompt chunks
        ("step_context", "i8"),  # tokens up to the end of each of its prompt chunks, together
        ("step_attention_s", "f8"),  # of its prompt chunks
        ("step_ready", "i8"),  # sequences whose prompt it completes, neighbours in the running list,
        ("step_ready_from", "i8"),  # and the first of them
    ]
)

SLOT = np.dtype(
    [
        ("request", "i8"),
        ("enter", "f8"),  # when the engine can see it
        ("prompt", "i8"),
        ("output", "i8"),  # oracle: read only to decide that a sequence has ended
        ("allowed", "i8"),  # the client's max_tokens, which the scheduler may see
        ("generated", "i8"),  # tokens produced before the last preemption
        ("target", "i8"),  # tokens to compute before the next one can be sampled
        ("computed", "i8"),
        ("joined", "i8"),  # replica counter when decoding began, -1 before
        ("next", "i8"),
        ("prev", "i8"),
        ("ids_from", "i8"),
        ("ids", "i8"),
        ("sharing", "i8"),  # ids that may still be shared: all, or up to the first one computed twice
        ("referenced", "i8"),  # leading prefix ids this sequence references
        ("shared", "i8"),  # KV blocks it holds through them
        ("own", "i8"),  # full blocks besides them that it left when it was preempted, or is stated to find,
        ("own_from", "i8"),  # the first of them, by its place in the sequence,
        ("own_at", "i8"),  # and where they stand in the ring of junk, -1 if nowhere,
        ("own_stamp", "i8"),  # if that entry still has this stamp
        # where chunks are aligned
        ("state", "i8"),  # tokens before the state that it kept beyond its prefix ids,
        ("junction", "i8"),  # and before the one that it is to keep where it leaves what others share,
        ("chunk_from", "i8"),  # where its last chunk began,
        ("chunk_step", "i8"),  # and in which step that was
        # where a drafter guesses ahead
        ("guess", "i8"),  # the next of the measured steps, by which this sequence goes
        ("guesses_left", "i8"),  # of the measured reply
        ("tokens", "i8"),  # in the step that is being put together
        ("held", "i8"),  # KV blocks, rejected tokens' among them; of any sequence that is leaving
        ("fresh", "i8"),  # tokens that the last step decoded, which the prefix cache does not know yet
        ("leaving", "i8"),  # ended, and the scheduler does not know it
        ("after", "i8"),  # the next that is leaving
        ("scheduled", "f8"),
        ("first", "f8"),
        ("last", "f8"),
        ("hit", "i8"),
        ("preempted", "i8"),
    ]
)

DONE = np.dtype(
    [
        ("request", "i8"),
        ("scheduled", "f8"),
        ("first", "f8"),
        ("finish", "f8"),
        ("hit", "i4"),
        ("preempted", "i4"),
        ("replica", "i2"),
    ]
)


class Sim(NamedTuple):
    """The arrays of one simulation; R replicas, U distinct prefix ids."""

    limits: NDArray[Any]
    """(1,) LIMITS"""
    replica: NDArray[Any]
    """(R,) REPLICA"""
    slot: NDArray[Any]
    free_slots: NDArray[np.int64]
    """Stack; element 0 holds its height."""
    done: NDArray[Any]
    done_count: NDArray[np.int64]
    """(1,)"""
    phase: NDArray[np.int64]
    """(R, block_size) decoding sequences by (tokens at join - counter at join) modulo block size."""
    heap_key: NDArray[np.int64]
    """(R, max_seqs) counter value at which a sequence ends, a binary min-heap with heap_slot."""
    heap_slot: NDArray[np.int64]
    ids: NDArray[np.int32]
    """Prefix ids of all requests, back to back."""
    id_end: NDArray[np.int64]
    """(U,) tokens up to the end of the block."""
    id_blocks: NDArray[np.int64]
    """(U,) KV blocks the id stands for."""
    id_holder: NDArray[np.int16]
    """(U,) replica that a router which follows prefixes sends the id to; -1: none yet."""
    stated: NDArray[np.int64]
    """(n,) prompt tokens that each request finds cached, whatever it shares; or empty"""
    id_present: NDArray[np.int8]
    """(R, U)"""
    id_refs: NDArray[np.int32]
    id_prev: NDArray[np.int32]
    id_next: NDArray[np.int32]
    id_stamp: NDArray[np.int64]
    id_state: NDArray[np.int32]
    """(R, U) tokens before the state that was kept within the id, 0: none; (R, 0) where chunks are not aligned"""
    id_state_busy: NDArray[np.int64]
    """likewise; the last step in which it is being kept, so that nobody finds it"""
    junk_stamp: NDArray[np.int64]
    """(R, J) ring of freed full blocks without a prefix id, in order of release."""
    junk_blocks: NDArray[np.int64]
    token_s: NDArray[np.float64]
    """(budget + 1,) dense over the tokens of a step that only decodes, padding included"""
    mixed_s: NDArray[np.float64]
    """(budget + 1,) the same for a step with prompt chunks"""
    sample_s: NDArray[np.float64]
    """(max_seqs + 1,), so many times more as a sequence may bring tokens"""
    drafter_s: NDArray[np.float64]
    """(max_seqs + 1,)"""
    reply_from: NDArray[np.int64]
    """(W + 1,) where each measured reply's steps begin; one that gives one token a step without a drafter"""
    proposed: NDArray[np.int64]
    accepted: NDArray[np.int64]
    beside_s: NDArray[np.float64]
    """(budget + 1,) per token of context that decodes beside prompt chunks of so many tokens"""
    decode_s: NDArray[np.float64]
    """(max_seqs + 1, C)"""
    decode_context: NDArray[np.float64]
    prefill_length: NDArray[np.float64]
    prefill_s: NDArray[np.float64]
    alone_steps: NDArray[np.float64]
    """Steps that only decode, by their tokens."""
    mixed_steps: NDArray[np.float64]
    """Steps with prompt chunks, by their tokens."""
    sampled_steps: NDArray[np.float64]
    """Steps by the sequences that get a token."""
    attended: NDArray[np.float64]
    """(max_seqs + 1, C) steps that decode, by batch and cell of the mean context,"""
    attended_context: NDArray[np.float64]
    """and the sum of their mean contexts."""
    prompted: NDArray[np.float64]
    """(4, P, L, L) of steps with prompt chunks, by octave of the number of chunks and cells of their mean tokens and
    mean context: the steps, and the sums of chunks, of their tokens, and of their contexts."""
    spent_decode: NDArray[np.float64]
    """Seconds spent per entry of decode_s, to weigh provenance afterwards; likewise below."""
    spent_prefill: NDArray[np.float64]
    gap_counts: NDArray[np.float64]
    """Histogram of inter-token gaps, logarithmic bins."""
