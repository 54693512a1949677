"""Counting collectives: notations, loops, duplicates, and a real compiled step."""

import jax
import numpy as np
import pytest

from set_diffusion_jax.plan import hlo
from set_diffusion_jax.plan.compiled import compile_step
from set_diffusion_jax.training.step import Program, make_mesh
from tests import tiny

MODULE = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%started (p: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %p = bf16[1,8]{1,0} parameter(0)
  %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
  ROOT %start = (bf16[1,8], bf16[4,8]) custom-call(%all-gather.1)
}

%overlapped (p.1: bf16[1,8]) -> bf16[4,8] {
  %p.1 = bf16[1,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[4,8]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
}

%all-reduce-scatter.1 (p.2: f32[16]) -> f32[8] {
  %p.2 = f32[16]{0} parameter(0)
  %all-reduce.5 = f32[16]{0} all-reduce(%p.2), channel_id=9, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %part = f32[8]{0} dynamic-slice(%all-reduce.5), dynamic_slice_sizes={8}
}

%inner_body (t: (s32[])) -> (s32[]) {
  %t = (s32[]) parameter(0)
  %scattered = f32[8] fusion(%t), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[]) tuple(%t)
}

%inner_condition (t.1: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %t.1 = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t.1), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (u: (s32[], f32[2])) -> (s32[], f32[2]) {
  %u = (s32[], f32[2]) parameter(0)
  %first = (bf16[1,8], bf16[4,8]) fusion(%u), kind=kCustom, calls=%started
  %second = bf16[4,8] fusion(%first), kind=kCustom, calls=%overlapped
  %kernel = f32[2] custom-call(%u), backend_config={"text":"
module {
  %x = all-gather(%y), channel_id=99
}
"}
  %loop = (s32[]) while(%t0), condition=%inner_condition, body=%inner_body
  ROOT %v = (s32[], f32[2]) tuple(%u)
}

%condition (u.1: (s32[], f32[2])) -> pred[] {
  %u.1 = (s32[], f32[2]) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (state: f32[2]) -> f32[2] {
  %state = f32[2]{0} parameter(0)
  %ahead = (bf16[1,8], bf16[4,8]) fusion(%state), kind=kCustom, calls=%started
  %outer = (s32[], f32[2]) while(%state), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %pair = (f32[3]{0}, bf16[2,2]{1,0}) all-reduce(%state, %state), channel_id=11, \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %moved = f32[10]{0} collective-permute(%state), channel_id=12, \
source_target_pairs={{0,1},{1,0}}
  %parts = ((f32[24]{0}), f32[3]{0}) reduce-scatter-start(%state), channel_id=14, \
replica_groups=[1,8]<=[8], to_apply=%add
  %sent = (f32[16]{0}, u32[], token[]) send(%state, %token), channel_id=20, \
is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %alone = f32[2]{0} all-reduce(%state), channel_id=13, replica_groups={{0},{1}}, \
to_apply=%add
}
"""


def test_a_module_is_counted_as_it_runs():
  found, problems = hlo.collectives(MODULE)
  counted = sorted((c.kind, c.bytes, c.groups.shape, c.times) for c in found)
  assert counted == [
    ("all-gather", 64, (2, 4), 13),  # the start ahead of the loop, and in the body
    ("all-reduce", 20, (1, 8), 1),
    ("all-reduce", 64, (4, 2), 1),  # between two slices of four chips
    ("collective-permute", 40, (2, 2), 1),
    ("reduce-scatter", 64, (4, 2), 60),  # 12 x 5, as an all-reduce
    ("reduce-scatter", 96, (1, 8), 1),  # as GPUs start it
  ]
  between = ("all-reduce", 64), ("reduce-scatter", 96)
  sent = {c.kind: c.sent for c in found if (c.kind, c.bytes) not in between}
  assert sent == {
    "all-gather": 64 * 3 / 4,
    "all-reduce": 2 * 20 * 7 / 8,
    "collective-permute": 40,
    "reduce-scatter": 64 / 2,
  }
  # The text of the kernel is no collective, and the guard that reads plain lines says
  # that something in it looks like one.
  assert problems == ["1 collectives were not read"]


def test_what_is_lost_is_reported():
  lost = MODULE.replace("body=%inner_body", "body=%elsewhere").replace(
    "channel_id=99", ""
  )
  _, problems = hlo.collectives(lost)
  assert problems == ["all-reduce 9 is in no computation that runs"]
  unknown = MODULE.replace("channel_id=99", "").replace("known_trip_count", "unknown")
  found, problems = hlo.collectives(unknown)
  assert problems == ["a loop's trip count is unknown; its body is counted once"]
  assert {c.times for c in found if c.kind == "reduce-scatter"} == {1, 5}


@pytest.mark.parametrize(
  "text, expected",
  [
    ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
    (
      "replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}, x",
      [[0, 1], [2, 3]],
    ),
    ("source_target_pairs={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
  ],
)
def test_groups_in_every_notation(text, expected):
  np.testing.assert_array_equal(hlo.replica_groups(text), expected)


def compiled(layers, **mesh):
  sizes = {f"mesh__{name}": size for name, size in mesh.items()}
  c = tiny.config(model__layers=layers, **sizes)
  vocabulary = tiny.vocabulary(64)
  return compile_step(Program.of(c, vocabulary, make_mesh(c)))


def sent(step):
  found, problems = hlo.collectives(step.text)
  assert not problems
  assert found
  return sum(c.sent * c.times for c in found)


@pytest.mark.multidevice
@pytest.mark.slow
def test_a_scanned_layer_counts_as_an_unrolled_one():
  """One layer is compiled without a loop; each further one sends the same."""
  if jax.device_count() != 4:
    pytest.skip("needs 4 devices; XLA_FLAGS of the environment say otherwise")
  one, two, four = (sent(compiled(n, data=2, fsdp=2, tensor=1)) for n in (1, 2, 4))
  assert four - two == 2 * (two - one) > 0
