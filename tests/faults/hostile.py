"""Hostile and broken artefacts: adapters, configs, templates, tokenizers, model folders. Deterministic by index."""

import json
import pickle
import random
import struct
import zipfile

CANARY = "canary"


class Evil:
    """A pickle that would leave a file behind."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


def pickles(folder):
    """Ten files that must never be opened; the canary appears where one is."""
    payload = pickle.dumps(Evil(folder / CANARY))
    names = ["adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "weights.pkl", "state.pickle", "model.ckpt",
             "training_args.bin", "adapter_model.joblib", "optimizer.npy", "rng.npz"]  # fmt: skip
    for name in names:
        if name.endswith((".pth", ".npz")):
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr("archive/data.pkl", payload)
        else:
            (folder / name).write_bytes(payload)
        yield name
        (folder / name).unlink()


def safetensors(tensors, header=None):
    """Bytes of a file: {name: (dtype, shape, bytes)}, or with a header of one's own."""
    made, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(made if header is None else header).encode()
    return struct.pack("<Q", len(text)) + text + data


def mutated(clean, seed):
    """One of a dozen kinds of damage to a safetensors file."""
    source = random.Random(seed)
    data = bytearray(clean)
    length = struct.unpack("<Q", clean[:8])[0]
    kind = seed % 12
    if kind == 0:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    elif kind == 1:
        del data[source.randrange(len(data)) :]
    elif kind == 2:
        data[:8] = struct.pack(
            "<Q", source.choice([0, 1, length - 1, length + 1, 1 << 20, 1 << 31, 1 << 62, 2**64 - 1])
        )
    elif kind == 3:
        at = 8 + source.randrange(length)
        data[at : at + 1] = bytes([source.randrange(256)])
    elif kind == 4:
        data += source.randbytes(source.randrange(1, 100))
    elif kind == 5:
        at = source.randrange(8, len(data))
        data[at : at + source.randrange(1, 64)] = source.randbytes(source.randrange(1, 64))
    elif kind == 6:
        for _ in range(20):
            data[source.randrange(8 + length, len(data))] ^= 1 << source.randrange(8)
    else:
        header = json.loads(clean[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]
        name = source.choice(names)
        entry = header[name]
        lies = {
            7: lambda: entry.update(shape=[side * source.choice([0, 2, 1 << 40, -1]) for side in entry["shape"]]),
            8: lambda: entry.update(dtype=source.choice(["F64", "I8", "F4", "PICKLE", 7, None, "BOOL"])),
            9: lambda: entry.update(data_offsets=[source.randrange(-5, 1 << 40) for _ in range(source.randrange(4))]),
            10: lambda: header.update({name * source.choice([1, 2, 500]): source.choice([entry, None, [], 3, {}])}),
            11: lambda: header.update({"__metadata__": source.choice([{"a": 1}, [], "x", {"a": "b" * 1000}])}),
        }
        lies[kind]()
        text = json.dumps(header).encode()
        data[:8] = struct.pack("<Q", len(text))
        data[8 : 8 + length] = text
    return bytes(data)


CONFIGS = {
    "type of nobody": {"peft_type": "EVIL"},
    "type is a list": {"peft_type": ["LORA"]},
    "rank two million": {"r": 2_000_000},
    "rank zero": {"r": 0},
    "rank as text": {"r": "8"},
    "rank is not a number": {"r": True},
    "alpha 1e9": {"lora_alpha": 1e9},
    "dropout over one": {"lora_dropout": 1.5},
    "catastrophic pattern": {"target_modules": "(([a-z_.0-9])+)+$|(.*.*.*)*x"},
    "pattern of a megabyte": {"target_modules": "a" * (1 << 20)},
    "a million names": {"target_modules": ["q"] * 1_000_000},
    "foreign library": {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
    "layers copied a thousand times": {"layer_replication": [[0, 1000]]},
    "megatron": {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"},
    "rank pattern that explodes": {"rank_pattern": {"([a-z_.0-9]+)+!": 8}},
    "excluded by a pattern that explodes": {"exclude_modules": "([a-z_.0-9]+)+!"},
    "layers by a pattern that explodes": {"layers_pattern": "([a-z_.0-9]+)+!"},
    "rank of four hundred digits": {"r": 10**400},
    "rank is a mapping": {"r": {}},
    "alpha of four hundred digits": {"lora_alpha": 10**400},
    "a setting of no method, huge": {"block_size": 1 << 40},
    "vectors for a galaxy": {"peft_type": "VBLORA", "num_vectors": 1 << 40, "vector_length": 1 << 40},
    "frequencies for a galaxy": {"peft_type": "FOURIERFT", "n_frequency": 1 << 40},
    "weights from a path": {
        "peft_type": "MULTITASK_PROMPT_TUNING",
        "prompt_tuning_init_state_dict_path": "/etc/passwd",
    },
    "saved modules with a pattern": {"modules_to_save": "(a+)+$"},
    "parameters that are no names": {"target_parameters": ["../../x", 3]},
    "init from a file": {"init_lora_weights": "/etc/passwd"},
    "code": {"auto_map": {"AutoModel": "evil.Model"}},
    "deep": {"modules_to_save": json.loads("[" * 50 + "]" * 50)},
}

TEMPLATES = {
    "endless": "{% for a in range(999999999) %}{% for b in range(999999999) %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "text without end": "{% for a in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    "memory": "{% set x = 'x' * (10 ** 10) %}{{ x }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "import": "{% import 'os' as os %}{{ os.system('id') }}",
    "include": "{% include '/etc/passwd' %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "not closed": "{% for m in messages %}",
    "long": "x" * 300_000,
    "attributes": "{{ messages.__getattribute__('append')({}) }}{{ lipsum.__globals__ }}",
}


CARDS = {
    "of the future": {"format": 99},
    "format is a text": {"format": "1"},
    "task is a number": {"task": 5},
    "task without a name": {"task": {"a": 1}},
    "template is a list": {"template": [1]},
    "template that explodes": {"template": {"name": "chat", "source": TEMPLATES["endless"]}},
    "labels are numbers": {"labels": [1, 2]},
    "method is a text": {"method": "lora"},
    "method without a name": {"method": {"name": ["lora"]}},
    "method of nobody": {"method": {"name": "evil"}},
    "base is a list": {"base": ["builtin"]},
    "window that changes other keys": {
        "context": {"method": "yarn", "family": "rope", "from": 1, "to": 2, "config": {"auto_map": 0, "vocab_size": 9}},
    },
    "window of a kernel": {
        "context": {"method": "yarn", "family": "rope", "from": 1, "to": 2, "config": {"_attn_implementation": "a/b"}},
    },
    "window without end": {"context": {"method": "yarn", "family": "rope", "from": 1, "to": 1 << 60, "config": {}}},
    "length of a text": {"max_length": "512"},
    "foreign code": {"auto_map": {"AutoModel": "evil.Model"}},
}
"""Changes of luthier.json."""


def tokenizers(clean):
    """tokenizer.json texts that hang, crash or lie."""
    base = json.loads(clean)

    def split(pattern):
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    def made(**changes):
        return json.dumps(base | changes)

    model = base["model"]
    swapped = dict(model["vocab"])
    first, second = list(swapped)[5:7]
    swapped[second] = swapped[first]
    return {
        "pattern that explodes": made(pre_tokenizer=split("(a*)*b|(a|aa)+$")),
        "pattern that does not compile": made(pre_tokenizer=split("(((")),
        "back-reference that explodes": made(pre_tokenizer=split("(a+)+\\1c")),
        "no model": json.dumps({key: value for key, value in base.items() if key != "model"}),
        "two tokens of one id": made(model=model | {"vocab": swapped}),
        "merges of nothing": made(model=model | {"merges": ["nothing here", "at all"]}),
        "no JSON": clean[: len(clean) // 2],
        "huge id": made(model=model | {"vocab": model["vocab"] | {"x\u0000y": 2**31}}),
        "deep": "[" * 100_000,
        "normaliser": made(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": "x" * 1000}),
    }


def hostile_folders(clean):
    """(name, function that spoils a copy of a clean model folder); each must be refused."""

    def code(name, text="open('canary', 'w')\n"):
        return lambda folder: (folder / name).write_text(text)

    def config(**changes):
        def act(folder):
            file = folder / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))

        return act

    def pickled(folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder / CANARY)))

    yield "modeling file", code("modeling_evil.py")
    yield "configuration file", code("configuration_evil.py")
    yield "compiled", code("evil.pyc")
    yield "library", code("evil.so")
    yield "shell", code("setup.sh")
    yield "auto_map", config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    yield "auto_map of a hub", config(auto_map={"AutoConfig": "org/repo--configuration.Evil"})
    yield "attention of a hub", config(_attn_implementation="org/kernel")
    yield "attention with a revision", config(attn_implementation="org/kernel@main:fn")
    yield "nested auto_map", config(text_config={"auto_map": {"AutoModel": "a.B"}})
    yield "custom generate", config(custom_generate="org/repo")
    yield "adapter beside the model", lambda folder: (folder / "adapter_config.json").write_text("{}")
    yield (
        "another tokenizer file",
        lambda folder: (folder / "tokenizer_config.json").write_text(
            '{"fast_tokenizer_files": ["tokenizer.4.0.json"]}'
        ),
    )
    yield "infinite number", lambda folder: (folder / "config.json").write_text('{"rope_theta": 1e999}')
    yield "width of a galaxy", config(hidden_size=1 << 40)
    yield "negative layers", config(num_hidden_layers=-3)
    yield "pickled weights", pickled
    yield "config is a list", lambda folder: (folder / "config.json").write_text("[" * 10_000)
    yield "weights cut", lambda folder: (folder / "model.safetensors").write_bytes(clean[: len(clean) // 2])
    yield "weights empty", lambda folder: (folder / "model.safetensors").write_bytes(b"")
    yield "header lies", lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + clean[8:])
    yield (
        "index outside",
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../../../etc/passwd"}})
        ),
    )
    for name, text in TEMPLATES.items():
        yield f"template: {name}", lambda folder, text=text: (folder / "chat_template.jinja").write_text(text)
