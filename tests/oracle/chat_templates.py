"""What transformers renders for every chat template and conversation: makes crates/base/src/chat_template/cases/cases.json.

    python chat_templates.py OUT TEMPLATE...
"""
import json, sys, os, re
from datetime import datetime
from transformers.utils.chat_template_utils import render_jinja_template
user = {"role": "user", "content": "Hi there 😀, what is 2+2?\n"}
answer = {"role": "assistant", "content": " It is 4 – <b>é</b> & more.\n"}
tools = [{"type": "function", "function": {"name": "get_weather", "description": "Weather \"now\" in a cité", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city"}, "days": {"type": "integer", "minimum": 1.5}}, "required": ["city"]}}}]
call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "call12345", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "deep": {"x": [1, None, True]}}}}]}
reply = {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "{\"t\": 21.5}"}
think = {"role": "assistant", "content": "<think>\nLet me see.\n</think>\n\nFour."}
reason = {"role": "assistant", "content": "Four.", "reasoning_content": "I add."}
system = {"role": "system", "content": " Be brief. "}
cases = {
 "user": ([user], None), "chat": ([user, answer, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes"}], None),
 "system": ([system, user, answer], None), "tools": ([system, user, call, reply, {"role": "assistant", "content": "21.5 degrees"}], tools),
 "think": ([user, think, user, think], None), "reason": ([user, reason, {"role": "user", "content": "Again"}, reason], None),
 "two": ([user, answer, user, answer, user], tools), "odd": ([answer], None), "empty": ([], None),
 "thinking": ([user, {"role": "assistant", "content": "Four.", "thinking": "I count."}], None),
 "parts": ([{"role": "user", "content": [{"type": "text", "text": "part one"}, {"type": "text", "text": "part two"}]}, {"role":"assistant","content":"ok"}], None),
}
special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
today = datetime.now()
def undate(text):
    for f, m in [("%d %b %Y", "{DATE:%d %b %Y}"), ("%Y-%m-%d", "{DATE:%Y-%m-%d}"), ("%B %d, %Y", "{DATE:%B %d, %Y}")]:
        text = text.replace(today.strftime(f), m)
    return text
out = []
for path in sys.argv[2:]:
    source = open(path, encoding="utf-8").read()
    for name, (messages, t) in cases.items():
        for prompt in (False, True):
            if prompt and messages and messages[-1]["role"] == "assistant": continue
            case = {"template": os.path.basename(path), "name": name, "messages": messages, "tools": t, "add_generation_prompt": prompt}
            try:
                texts, marks = render_jinja_template([json.loads(json.dumps(messages))], tools=t, chat_template=source, return_assistant_tokens_mask=True, add_generation_prompt=prompt, **special)
                text = texts[0]
                case["text"] = undate(text)
                case["generated"] = [[len(text[:a].encode()), len(text[:b].encode())] for a, b in marks[0]]
            except Exception as e:
                case["error"] = f"{type(e).__name__}: {e}"
            out.append(case)
json.dump({"special": special, "cases": out}, open(sys.argv[1], "w"), ensure_ascii=False, indent=1)
print(len(out), "cases,", sum("error" in c for c in out), "errors")
