"The plan as a command, the examples as accelerate, bash and the library read them."
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from mmjepa.core import UserError, run_command
from mmjepa.vl.config import load_curriculum, plan_table, to_model
from mmjepa.vl.scaling import DEVICES, Device, Work, count_parameters, main, plan_cost
from mmjepa.vl.model import VLJEPA
from tree import ROOT

EXAMPLES = ROOT/'examples'
REFERENCE = EXAMPLES.parent.parent/'shared/reference/B-vl-jepa-training.txt'
TINY = '''
training:
  {batch_size: 8, micro_batch_size: 2, gradient_accumulation_steps: 4, jepa: {embedding_dim: 16},
   lm: {context_length: 64, vocab_size: 300}}
model: {hidden_size: 32, num_layers: 2, vision: {image_size: 32, patch_size: 8, width: 24, depth: 1, heads: 2}}
'''


@pytest.fixture
def tiny(tmp_path):
    (tmp_path/'tiny.yaml').write_text(TINY)
    return tmp_path/'tiny.yaml'


def test_the_command_plans_as_a_process(tmp_path):
    flags = ['--device', 'h200', '--devices', '64', '--mfu', '0.4', '--output', tmp_path/'p.png']
    args = [sys.executable, '-m', 'mmjepa.vl.scaling', EXAMPLES/'curriculum.yaml', *flags]
    done = subprocess.run([*map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for words in ('1,772,310,016 are trained', 'FSDP, checkpointing', 'all: 250,000,000,000 tokens', '2,500 shards',
                  f'figure: {tmp_path}/p.png'):
        assert words in done.stdout
    assert (tmp_path/'p.png').read_bytes().startswith(b'\x89PNG')


def test_a_small_plan(tiny, tmp_path, capsys):
    flags = ['--devices', '4', '--device', 'a100', '--total-tokens', '2M', '--precision', 'fp32']
    run_command(main, [str(tiny), *flags, '--output', str(tmp_path/'p.png')])
    said = capsys.readouterr().out
    assert 'all: 2,000,000 tokens' in said and 'gradients accumulated over 1' in said
    assert 'device seconds' in said and 'MB on each a100' in said and ' days' not in said  # in its own units
    config = load_curriculum(tiny, '2M')
    model = VLJEPA(to_model(config))
    assert sum(count_parameters(to_model(config)).values()) == sum(p.numel() for p in model.parameters())
    assert plan_table(config).steps.tolist() == [1563, 1172, 782, 391]


@pytest.mark.parametrize('more, says', [
    (['--device', 'tpu'], "--device is 'tpu'; expected one of h200, h100, a100, b200, mi300x"),
    (['--precision', 'fp8'], "--precision is 'fp8'; expected one of bf16, fp32"),
    (['--devices', '3'], 'batch_size 8 is not a multiple of micro_batch_size 2 x 3 ranks; expected'),
    (['--devices', '0'], 'devices is 0; expected a whole number of 1 or more'),
    (['--mfu', '40'], 'mfu is 40.0; expected a share above 0, up to 1'),
    (['--mfu', 'nan'], 'mfu is nan'),
    (['--shard_tokens', '1.5'], 'shard_tokens is 1.5; expected a whole number'),
    (['--shard_tokens', 'nan'], "--shard_tokens is 'nan'"), (['--pair_tokens', '0'], 'pair_tokens is 0'),
    (['--shard_tokens', 'many'], "--shard_tokens is 'many'; expected a number"),
    (['--total_tokens', '3'], 'has none of 3 tokens'),
    (['--total_tokens', 'lots'], "total_tokens is 'lots'; expected a number"),
    (['--output', '/dev/null/p.png'], '/dev/null/p.png: cannot write'),
])
def test_bad_input_is_one_line(tiny, tmp_path, capsys, more, says):
    output = [] if '--output' in more else ['--output', str(tmp_path/'p.png')]
    with pytest.raises(SystemExit) as e: run_command(main, [str(tiny), *more, *output])
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count('\n') == 1
    assert not (tmp_path/'p.png').exists()


@pytest.mark.parametrize('wrong, says', [
    (lambda c: Device(0, 1), 'flops of a device is 0'), (lambda c: Device(1e12, math.nan), 'memory of a device is nan'),
    (lambda c: Work(0), 'text is 0'), (lambda c: Work(8, images=math.nan), 'images is nan; expected 0 or more'),
    (lambda c: Work(8, alpha=math.inf), 'alpha is inf'),
    (lambda c: plan_cost(c, DEVICES['h200'], 1.5), 'devices is 1.5'),
    (lambda c: plan_cost(c, DEVICES['h200'], math.nan), 'devices is nan')])
def test_nan_and_zero_are_no_numbers_of_a_plan(tiny, wrong, says):
    with pytest.raises(UserError, match=says): wrong(load_curriculum(tiny))


def test_bad_files_are_one_line(tmp_path, capsys):
    (tmp_path/'bad.yaml').write_text('training: {batchsize: 3}')
    for name, says in (('bad.yaml', "training: unknown key 'batchsize'"), ('none.yaml', 'cannot be read')):
        with pytest.raises(SystemExit): run_command(main, [str(tmp_path/name)])
        err = capsys.readouterr().err
        assert f'{tmp_path/name}: {says}' in err and err.count('\n') == 1


def test_the_example_is_the_reference(tmp_path):
    "The values of the reference, and the stages and weights that are the defaults."
    (tmp_path/'empty.yaml').write_text('{}')
    config, default = load_curriculum(EXAMPLES/'curriculum.yaml', ranks=64), load_curriculum(tmp_path/'empty.yaml')
    assert config.training.model_copy(update={'gradient_accumulation_steps': 64}) == default.training
    for a, b in zip(config.stages, default.stages, strict=True):
        assert a.lr == pytest.approx(b.lr) and a.model_copy(update={'lr': b.lr}) == b
    ours, theirs = ([(k, s.weight, s.topic, s.instruction) for k, s in c.sources.items()] for c in (config, default))
    assert sorted(ours) == sorted(theirs)


@pytest.mark.skipif(not REFERENCE.exists(), reason='the reference is not beside the repository')
def test_the_yaml_of_the_reference_loads_as_it_is(tmp_path):
    (tmp_path/'c.yaml').write_text(REFERENCE.read_text(encoding='utf-8').split('```yaml\n')[1].split('```')[0])
    assert load_curriculum(tmp_path/'c.yaml').training.jepa.step_weights == (1., .8, .6)


EXPECTED = [('1gpu', 1, 'NO'), ('8gpu_ddp', 8, 'MULTI_GPU'), ('multinode_fsdp', 64, 'FSDP')]


@pytest.mark.parametrize('name, processes, kind', EXPECTED)
def test_accelerate_reads_its_examples(name, processes, kind):
    "Its own parser refuses keys that it does not know; those of FSDP are flags of `accelerate launch`."
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    path = EXAMPLES/f'accelerate_{name}.yaml'
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.distributed_type.value, config.mixed_precision) == (processes, kind, 'bf16')
    flags = {a.dest for a in launch_command_parser()._actions}
    assert set(config.fsdp_config or {}) <= flags
    assert set(yaml.safe_load(path.read_text())) <= set(vars(config))


def test_fsdp_wraps_the_blocks_of_the_model(tiny):
    "The names in the example are those of the classes that a model is made of."
    settings = yaml.safe_load((EXAMPLES/'accelerate_multinode_fsdp.yaml').read_text())['fsdp_config']
    names = settings['fsdp_transformer_layer_cls_to_wrap'].split(',')
    found = [type(m).__name__ for m in VLJEPA(to_model(load_curriculum(tiny))).modules()]
    assert [found.count(n) for n in names] == [2, 1 + 2]  # language layers; vision and fusion blocks


def stand_ins(folder, programs, **variables):
    "An environment in which SLURM's programs are these scripts of bash."
    for name, text in programs.items():
        (folder/name).write_text(f'#!/bin/bash\n{text}\n')
        (folder/name).chmod(0o755)
    path = f'{folder}:{os.environ["PATH"]}'
    return {**os.environ, 'PATH': path, 'SLURM_JOB_NODELIST': 'x', **variables}


def test_the_slurm_script(tmp_path):
    "Bash parses it, and on every machine accelerate gets that machine's rank."
    script, out = EXAMPLES/'slurm.sh', tmp_path/'out'
    assert subprocess.run(['bash', '-n', script]).returncode == 0
    each = 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done'
    programs = {'scontrol': 'echo first; echo second', 'srun': each, 'accelerate': 'printf "%s|" "$@"; echo'}
    env = stand_ins(tmp_path, programs, SLURM_NNODES='2', SLURM_SUBMIT_DIR=str(EXAMPLES.parent))
    def run(): return subprocess.run(['bash', script, 'my config.yaml', out], env=env, capture_output=True, text=True)
    done = run()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    command = f'-m|mmjepa.vl.train|my config.yaml|--output|{out}|--save_every|200|'
    for rank, line in enumerate(lines):
        for words in ('--num_processes|16|', f'--machine_rank|{rank}|', '--main_process_ip|first|', command):
            assert words in line
    assert len(lines) == 2 and '--resume' not in done.stdout
    (out/'checkpoints').mkdir(parents=True)
    assert run().stdout.count('|--resume|') == 2


def test_the_slurm_script_passes_the_warning_on(tmp_path):
    """USR1 reaches the tasks as SIGTERM, by scancel: a TERM of srun itself kills them at once, as SLURM's does.

    The script waits for their end and has its status. The tasks are played by srun, which hears of them by USR2."""
    tasks = ['trap "sleep .3; echo stopped; exit 143" USR2', 'trap "exit 1" TERM', f'echo $$ > {tmp_path}/pid',
             'echo started', 'for _ in {1..600}; do sleep .1; done']
    warn = f'[ "$*" = "--signal=TERM 77" ] && kill -USR2 $(cat {tmp_path}/pid)'
    programs = {'scontrol': 'echo first', 'srun': '\n'.join(tasks), 'scancel': warn}
    env = stand_ins(tmp_path, programs, SLURM_NNODES='1', SLURM_JOB_ID='77')
    args = ['bash', EXAMPLES/'slurm.sh', 'c.yaml', tmp_path/'out']
    p = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'started\n'
    time.sleep(.3)  # the trap is set right after the start
    p.send_signal(signal.SIGUSR1)
    assert p.communicate(timeout=60)[0] == 'stopped\n'
    assert p.returncode == 143


def test_devices_are_named_in_the_help(capsys):
    with pytest.raises(SystemExit): run_command(main, ['--help'])
    said = capsys.readouterr().out
    for name in DEVICES: assert name in said
