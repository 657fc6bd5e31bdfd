"Settings of a curriculum that takes seconds."
import json


def silent(line): pass


def write_lines(path, records): path.write_text('\n'.join(map(json.dumps, records)))


def small_curriculum(root, total_tokens, patch_size, **model):
    "Settings with three sources, two of which are written into `root`; the pairs of pictures must lie there."
    write_lines(root/'text.jsonl', [{'text': f'{w} is number {i}'} for i in range(40) for w in ('one', 'two', 'three')])
    write_lines(root/'ask.jsonl', [{'prompt': f'{a}+{b}=', 'text': str(a + b)} for a in range(8) for b in range(8)])
    training = {'batch_size': 4, 'micro_batch_size': 2, 'gradient_accumulation_steps': 2, 'optimizers': {'lr': 3e-3},
                'lm': {'context_length': 32}, 'jepa': {'embedding_dim': 16},
                'scheduler': {'warmup_tokens': 400, 'min_lr': 1e-4}}
    vision = {'image_size': 8, 'patch_size': patch_size, 'width': 16, 'depth': 1, 'heads': 2, 'drop_path': 0}
    shape = {'vision': vision, 'hidden_size': 16, 'num_layers': 1, 'num_heads': 2, 'num_kv_heads': 1, 'fusion_depth': 1}
    files = {'vision_text': 'pairs.jsonl', 'papers': 'text.jsonl', 'code_text': 'text.jsonl',
             'questions_answers': 'ask.jsonl'}
    return {'training': training, 'model': shape | model, 'total_tokens': total_tokens,
            'sources': {name: {'path': file} for name, file in files.items()}}
