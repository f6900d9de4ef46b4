//! `taper chat`: a conversation in which adapters are swapped and compared.

use std::io::{self, BufRead, IsTerminal, stdin};

use anyhow::{Context, bail};
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};
use taper_base::{Adapter, Base, GenerationOptions, Session};

use crate::args::{AdapterArgs, RunArgs, SamplingArgs};
use crate::output::{print, print_piece, say};
use crate::sources::{self, Loaded};

const HELP: &str = "\
/adapter NAME   answer with this adapter from now on; /adapter base for the bare base
/adapters       the adapters that are loaded; /adapter alone lists them too
/compare TEXT   answer TEXT with the base and with every adapter; the conversation stays as it was
/system TEXT    set the system message and begin anew
/reset          begin anew
/exit           leave (so does Ctrl-D)";

/// Talk to a model, swapping adapters as you go.
#[derive(Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: RunArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let base = sources::open_writer(&args.model, &args.adapters.adapter)?;
    if base.model.decoder_start().is_some() {
        bail!(
            "a {} writes one text from another and holds no conversation: use taper generate, or taper predict for the lines of a \
             file",
            base.model_type()
        );
    }
    if base.tokenizer.chat().is_none() {
        bail!("{} has no chat template: use `taper generate` with a plain prompt", base.dir.name);
    }
    let adapters = sources::load_adapters(&base, &args.adapters)?;
    let mut talk = Talk {
        base: &base,
        adapters: &adapters,
        current: if adapters.is_empty() { None } else { Some(0) },
        options: args.sampling.options(),
        system: args.system.clone(),
        messages: Vec::new(),
        session: Session::new(&base),
    };
    say(format_args!("answering with {}; /help lists the commands", talk.name()));
    let mut lines = Lines::open()?;
    while let Some(line) = lines.next()? {
        match talk.take(line.trim()) {
            Ok(true) => {}
            Ok(false) => break,
            // Nobody would read what is answered from here on: of all that a line does, only the output is of the system.
            Err(error) if error.downcast_ref::<io::Error>().is_some() => return Err(error),
            Err(error) => say(crate::output::chain(&error)),
        }
    }
    Ok(())
}

/// A conversation and whoever answers in it.
struct Talk<'a> {
    base: &'a Base,
    adapters: &'a [Loaded],
    /// Index of the adapter that answers; the base when none.
    current: Option<usize>,
    options: GenerationOptions,
    system: Option<String>,
    messages: Vec<Value>,
    session: Session<'a>,
}

impl Talk<'_> {
    /// Takes a line; false at the end.
    fn take(&mut self, line: &str) -> anyhow::Result<bool> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "" => {}
            "/exit" | "/quit" => return Ok(false),
            "/help" => say(HELP),
            "/adapters" => self.list(),
            "/adapter" if rest.is_empty() => self.list(),
            "/adapter" => self.swap(rest),
            "/compare" => self.compare(rest)?,
            "/reset" => self.reset(),
            "/system" => {
                self.system = (!rest.is_empty()).then(|| rest.to_owned());
                self.reset();
            }
            _ if command.starts_with('/') => say(format_args!("no command `{command}`; /help lists them")),
            _ => self.answer(line)?,
        }
        Ok(true)
    }

    fn name(&self) -> &str {
        self.current.map_or("the base", |i| &self.adapters[i].name)
    }

    fn adapter(&self) -> &dyn Adapter {
        self.current.map_or(&() as &dyn Adapter, |i| &self.adapters[i].adapter)
    }

    fn list(&self) {
        for name in std::iter::once("base").chain(self.adapters.iter().map(|loaded| loaded.name.as_str())) {
            let mark =
                if name == self.name() || (self.current.is_none() && name == "base") { "*" } else { " " };
            say(format_args!("{mark} {name}"));
        }
    }

    fn reset(&mut self) {
        self.messages.clear();
        self.session = Session::new(self.base);
        say("a new conversation");
    }

    /// Lets another adapter answer. The history stays; what the model kept of it does not, since it was another's.
    fn swap(&mut self, name: &str) {
        let found = self.adapters.iter().position(|loaded| loaded.name == name);
        if found.is_none() && name != "base" {
            say(format_args!("no adapter `{name}`:"));
            self.list();
            return;
        }
        if found != self.current {
            self.current = found;
            self.session = Session::new(self.base);
        }
        say(format_args!("answering with {}", self.name()));
    }

    fn answer(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({ "role": "user", "content": text }));
        match self.reply() {
            Ok(reply) => self.messages.push(json!({ "role": "assistant", "content": reply })),
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn reply(&mut self) -> anyhow::Result<String> {
        let ids = [sources::chat_ids(self.base, &self.conversation(None))?];
        let mut session = std::mem::replace(&mut self.session, Session::new(self.base));
        let mut broken = None;
        let mut on_text = |_: usize, piece: &str| {
            if let Err(error) = print_piece(piece) {
                broken.get_or_insert(error);
            }
        };
        let generation = session.generate(self.adapter(), &ids[0], &self.options, &mut on_text)?;
        self.session = session;
        print("")?;
        sources::warn_beyond_made(self.base, &ids, std::slice::from_ref(&generation));
        broken.map_or(Ok(generation.text), Err)
    }

    /// Answers `text`, or the last question anew, with the base and every adapter.
    fn compare(&self, text: &str) -> anyhow::Result<()> {
        let conversation = match (text, self.messages.as_slice()) {
            ("", [.., _, _]) => {
                let mut messages = self.conversation(None);
                if let Value::Array(messages) = &mut messages {
                    messages.pop();
                }
                messages
            }
            ("", _) => {
                say("nothing has been asked yet: /compare TEXT");
                return Ok(());
            }
            _ => self.conversation(Some(text)),
        };
        let ids = [sources::chat_ids(self.base, &conversation)?];
        let base: (&str, &dyn Adapter) = ("base", &());
        let named =
            self.adapters.iter().map(|loaded| (loaded.name.as_str(), &loaded.adapter as &dyn Adapter));
        for (name, adapter) in std::iter::once(base).chain(named) {
            let generations = taper_base::generate(self.base, adapter, &ids, &self.options, &mut |_, _| ())?;
            sources::warn_beyond_made(self.base, &ids, &generations);
            for generation in generations {
                print(format_args!("{name} | {}", generation.text.trim()))?;
            }
        }
        Ok(())
    }

    /// The messages so far, with the system message before and a question after them.
    fn conversation(&self, question: Option<&str>) -> Value {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let question = question.iter().map(|text| json!({ "role": "user", "content": text }));
        system.chain(self.messages.iter().cloned()).chain(question).collect()
    }
}

/// Lines from a terminal, with editing and history, or from a pipe.
enum Lines {
    Terminal(Box<DefaultEditor>),
    /// How many have been read.
    Pipe(usize),
}

impl Lines {
    fn open() -> anyhow::Result<Self> {
        Ok(if stdin().is_terminal() {
            Self::Terminal(Box::new(DefaultEditor::new()?))
        } else {
            Self::Pipe(0)
        })
    }

    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    editor.add_history_entry(&line)?;
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::Pipe(count) => {
                *count += 1;
                let mut line = Vec::new();
                let read = stdin().lock().read_until(b'\n', &mut line).context("standard input")?;
                let line = String::from_utf8(line);
                let line = line.with_context(|| format!("standard input, line {count}: expected UTF-8"))?;
                Ok((read > 0).then_some(line))
            }
        }
    }
}
