"""Renders every case of chat_templates.json with Jinja2 as Hugging Face transformers sets it up, and writes what it
should give back into the file: `pip install jinja2==3.1.6; python3 render_templates.py`."""

import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks answers for training; a prompt shows what is inside."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("show"), [], [], body).set_lineno(line)

    def show(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    path = pathlib.Path(__file__).with_name("chat_templates.json")
    cases = json.loads(path.read_text())
    for case in cases:
        shared = {name: case[name] for name in ("messages", "tools", "add_generation_prompt")}
        case.pop("want", None)
        case.pop("error", None)
        try:
            template = env.from_string(case["source"])
            case["want"] = template.render(bos_token="<s>", eos_token="</s>", **shared, **case["kwargs"])
        except Exception as error:
            case["error"] = f"{type(error).__name__}: {error}"
    path.write_text(json.dumps(cases, ensure_ascii=False, indent=1))


main()
