"""The page at /: a person types texts and sees what each library answers."""

import html
import json

from intformer.ir.heads import NEVER
from intformer.serve.served import Models

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>intformer</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.5 system-ui; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
textarea, select, input { font: inherit; width: 100%; box-sizing: border-box; margin-bottom: .8rem }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
button { font: inherit; padding: .3rem 1.2rem }
</style>
<h1>intformer</h1>
<form id="form">
<label>Model <select id="model">OPTIONS</select></label>
<label>Texts, one per line <textarea id="texts" rows="4" required></textarea></label>
<label id="second">Second texts, one per line: documents of questions, the other text of a pair
<textarea id="pairs" rows="4"></textarea></label>
<label>Key, where the server needs one <input id="key" type="password" autocomplete="off"></label>
<button>Answer</button> <a href="/docs">API</a>
</form>
<pre id="answer" aria-live="polite"></pre>
<script>
const takesPairs = PAIRS, at = name => document.getElementById(name);
const lines = name => at(name).value.split("\\n").filter(line => line.trim());
const show = () => { at("second").hidden = !takesPairs[at("model").value] };
at("model").onchange = show; show();
const long = value => Array.isArray(value) && value.length > 8 && typeof value[0] == "number";
const short = (key, value) =>
  long(value) ? [...value.slice(0, 8), `... ${value.length} numbers`] : value;
at("form").onsubmit = async event => {
  event.preventDefault();
  const body = { model: at("model").value, texts: lines("texts") };
  if (takesPairs[body.model] && lines("pairs").length) body.pairs = lines("pairs");
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = "Bearer " + at("key").value;
  try {
    const answer = await fetch("/answer", { method: "POST", headers, body: JSON.stringify(body) });
    at("answer").textContent = JSON.stringify(await answer.json(), short, 2);
  } catch (error) { at("answer").textContent = String(error) }
};
</script></html>
"""


def page(models: Models) -> str:
    """Return the page for these libraries."""
    options = "".join(
        f'<option value="{html.escape(name)}">{html.escape(f"{name} ({one.head.name})")}</option>'
        for name, one in models.all.items()
    )
    pairs = json.dumps({name: one.head.pairs != NEVER for name, one in models.all.items()})
    return PAGE.replace("OPTIONS", options).replace("PAIRS", pairs.replace("<", "\\u003c"))
