//! How a pull, a push or a load goes on: bars on a terminal, Docker's plain lines
//! elsewhere, nothing where quiet was asked for.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write as _};

use gantry_oci::Reference;
use gantry_proto::image::v1::pull_response::Event as PullEvent;
use gantry_proto::image::v1::push_response::Event as PushEvent;
use gantry_proto::image::v1::{
    LayerProgress, LayerState, PullDone, PullResponse, PushDone, PushResponse, Resolved,
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::display;
use crate::terminal;

/// Where the lines go: standard output belongs to the program of `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

/// Which way an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Pull,
    Push,
    Load,
}

/// The display of one transfer.
#[derive(Debug)]
pub(crate) struct Progress {
    way: Way,
    channel: Channel,
    quiet: bool,
    bars: Option<MultiProgress>,
    layers: HashMap<String, Layer>,
    /// As the caller named the image.
    reference: String,
}

#[derive(Debug)]
struct Layer {
    state: LayerState,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn of_pull(reference: &str, channel: Channel, quiet: bool) -> Self {
        Self::new(Way::Pull, reference, channel, quiet)
    }

    pub(crate) fn of_push(reference: &str, quiet: bool) -> Self {
        Self::new(Way::Push, reference, Channel::Stdout, quiet)
    }

    /// Of a load plain lines would tell nothing that its end does not: as with
    /// Docker it shows bars or nothing.
    pub(crate) fn of_load(quiet: bool) -> Self {
        let quiet = quiet || !io::stdout().is_terminal();
        Self::new(Way::Load, "", Channel::Stdout, quiet)
    }

    fn new(way: Way, reference: &str, channel: Channel, quiet: bool) -> Self {
        let terminal = match channel {
            Channel::Stdout => io::stdout().is_terminal(),
            Channel::Stderr => io::stderr().is_terminal(),
        };
        let bars = (terminal && !quiet).then(|| {
            MultiProgress::with_draw_target(match channel {
                Channel::Stdout => ProgressDrawTarget::stdout(),
                Channel::Stderr => ProgressDrawTarget::stderr(),
            })
        });
        Self {
            way,
            channel,
            quiet,
            bars,
            layers: HashMap::new(),
            reference: reference.to_owned(),
        }
    }

    /// Shows one step of a pull; the end's summary where it is the last.
    pub(crate) fn pulled(&mut self, response: PullResponse) -> io::Result<Option<PullDone>> {
        match response.event {
            Some(PullEvent::Resolved(resolved)) => self.resolved(&resolved)?,
            Some(PullEvent::Layer(layer)) => self.layer(&layer)?,
            Some(PullEvent::Done(done)) => {
                self.finish();
                let status = if done.updated {
                    "Downloaded newer image for"
                } else {
                    "Image is up to date for"
                };
                self.line(&format!("Digest: {}", done.digest))?;
                self.line(&format!("Status: {status} {}", familiar(&self.reference)))?;
                return Ok(Some(done));
            }
            None => {}
        }
        Ok(None)
    }

    /// Shows one step of a push; the end's summary where it is the last.
    pub(crate) fn pushed(&mut self, response: PushResponse) -> io::Result<Option<PushDone>> {
        match response.event {
            Some(PushEvent::Layer(layer)) => self.layer(&layer)?,
            Some(PushEvent::Done(done)) => {
                self.finish();
                let tag = parsed(&self.reference)
                    .and_then(|reference| reference.tag().map(ToString::to_string))
                    .unwrap_or_else(|| "latest".to_owned());
                self.line(&format!(
                    "{tag}: digest: {} size: {}",
                    done.digest, done.size
                ))?;
                return Ok(Some(done));
            }
            None => {}
        }
        Ok(None)
    }

    /// Shows how far a layer is that is loaded.
    pub(crate) fn loading(&mut self, layer: &LayerProgress) -> io::Result<()> {
        self.layer(layer)
    }

    /// Says something that is wanted even where quiet was asked for.
    pub(crate) fn say(&mut self, text: &str) -> io::Result<()> {
        match &self.bars {
            Some(bars) => bars.println(text),
            None => terminal::println(text),
        }
    }

    /// Says what a push is about to do.
    pub(crate) fn push_begins(&mut self) -> io::Result<()> {
        let repository = parsed(&self.reference).map_or_else(
            || self.reference.clone(),
            |reference| reference.repository().canonical(),
        );
        self.line(&format!("The push refers to repository [{repository}]"))
    }

    /// Lets go of the bars, leaving what they last showed.
    pub(crate) fn finish(&mut self) {
        for layer in self.layers.values() {
            if let Some(bar) = &layer.bar
                && !bar.is_finished()
            {
                bar.abandon();
            }
        }
        self.bars = None;
    }

    fn resolved(&mut self, resolved: &Resolved) -> io::Result<()> {
        let (tag, repository) = match parsed(&resolved.reference) {
            Some(reference) => (
                reference
                    .tag()
                    .map(ToString::to_string)
                    .or_else(|| reference.digest().map(ToString::to_string))
                    .unwrap_or_else(|| "latest".to_owned()),
                reference.name().to_string(),
            ),
            None => (String::new(), resolved.reference.clone()),
        };
        self.line(&format!("{tag}: Pulling from {repository}"))?;
        // Plain lines wait until it is known which of them are there already.
        if self.bars.is_none() {
            return Ok(());
        }
        for layer in &resolved.layers {
            self.layer(&LayerProgress {
                digest: layer.digest.clone(),
                state: LayerState::Waiting.into(),
                current: 0,
                total: layer.size,
            })?;
        }
        Ok(())
    }

    fn layer(&mut self, progress: &LayerProgress) -> io::Result<()> {
        if self.quiet {
            return Ok(());
        }
        let state = progress.state();
        let short = display::short_id(&progress.digest);
        let before = self.layers.get(&progress.digest).map(|layer| layer.state);
        if !self.layers.contains_key(&progress.digest) {
            let bar = self.bars.as_ref().map(|bars| {
                let bar = bars.add(ProgressBar::new(progress.total));
                bar.set_prefix(short.clone());
                bar
            });
            self.layers
                .insert(progress.digest.clone(), Layer { state, bar });
        }
        let Some(layer) = self.layers.get_mut(&progress.digest) else {
            return Ok(());
        };
        layer.state = state;
        let word = match (state, self.way) {
            (LayerState::Waiting | LayerState::Unspecified, Way::Pull | Way::Load) => "Waiting",
            (LayerState::Waiting | LayerState::Unspecified, Way::Push) => "Preparing",
            (LayerState::Downloading, Way::Load) => "Loading layer",
            (LayerState::Downloading, _) => "Downloading",
            (LayerState::Unpacking, _) => "Extracting",
            (LayerState::Complete, Way::Pull) => "Pull complete",
            (LayerState::Complete, Way::Push) => "Pushed",
            (LayerState::Complete, Way::Load) => "Loaded",
            (LayerState::Exists, Way::Pull | Way::Load) => "Already exists",
            (LayerState::Exists, Way::Push) => "Layer already exists",
            (LayerState::Mounted, _) => "Mounted from another repository",
            (LayerState::Uploading, _) => "Pushing",
        };
        if let Some(bar) = &layer.bar {
            bar.set_message(word);
            match state {
                LayerState::Complete | LayerState::Exists | LayerState::Mounted => {
                    bar.set_style(line_style());
                    bar.finish();
                }
                LayerState::Waiting | LayerState::Unspecified => bar.set_style(line_style()),
                _ => {
                    if before != Some(state) {
                        bar.set_style(bar_style());
                    }
                    bar.set_length(progress.total);
                    bar.set_position(progress.current.min(progress.total));
                }
            }
            return Ok(());
        }
        if before == Some(state) {
            return Ok(());
        }
        let line = match state {
            // The first that is heard of it, whichever it is.
            LayerState::Waiting | LayerState::Unspecified | LayerState::Downloading
                if before.is_none() && self.way == Way::Pull =>
            {
                "Pulling fs layer"
            }
            LayerState::Waiting | LayerState::Unspecified if before.is_none() => word,
            LayerState::Unpacking => "Download complete",
            LayerState::Complete | LayerState::Exists | LayerState::Mounted => word,
            // Plain lines tell ends, not ways.
            _ => return Ok(()),
        };
        self.line(&format!("{short}: {line}"))
    }

    fn line(&self, text: &str) -> io::Result<()> {
        if self.quiet {
            return Ok(());
        }
        if let Some(bars) = &self.bars {
            return bars.println(text);
        }
        match self.channel {
            Channel::Stdout => {
                let mut out = io::stdout().lock();
                writeln!(out, "{text}")?;
                out.flush()
            }
            Channel::Stderr => writeln!(io::stderr(), "{text}"),
        }
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix}: {msg:<14} [{bar:40}] {decimal_bytes:>9}/{decimal_total_bytes:<9}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("=> ")
}

fn line_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}: {msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn parsed(text: &str) -> Option<Reference> {
    text.parse::<Reference>()
        .ok()
        .map(Reference::with_default_tag)
}

/// "debian:12" for "docker.io/library/debian:12".
pub(crate) fn familiar(text: &str) -> String {
    parsed(text).map_or_else(|| text.to_owned(), |reference| reference.familiar())
}

/// "docker.io/library/debian:12" for "debian:12".
pub(crate) fn canonical(text: &str) -> String {
    parsed(text).map_or_else(|| text.to_owned(), |reference| reference.canonical())
}

/// Whether `text` is an image's name by its syntax; the reason where it is not.
pub(crate) fn check_reference(text: &str) -> Result<(), String> {
    text.parse::<Reference>()
        .map(|_| ())
        .map_err(|error| gantry_kit::fault::chain(&error))
}

/// Whether `text` names neither a tag nor a digest.
pub(crate) fn has_no_tag(text: &str) -> bool {
    text.parse::<Reference>()
        .is_ok_and(|reference| reference.tag().is_none() && reference.digest().is_none())
}
