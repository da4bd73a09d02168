//! What a pool is created with: defaults and limits of every option.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    waker,
    wire::Message,
};

/// The most workers of one pool.
pub const MAX_WORKERS: usize = 1024;

/// What happens to a job that finds the queue full.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// The caller waits until there is room.
    #[default]
    Wait,
    /// The call fails.
    Fail,
}

/// The options of `msys.threadpool.create` as the user writes them; a misspelt one is an error that lists these.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The pool's name, required; case does not count.
    pub name: Option<String>,
    /// How many workers it may have.
    pub concurrency: Option<f64>,
    /// How many jobs one worker may have in progress.
    pub sessions: Option<f64>,
    /// How many jobs may wait.
    pub backlog: Option<f64>,
    /// What happens when that many wait.
    pub when_full: Option<WhenFull>,
    /// The workers' C stacks, in bytes.
    pub stack_size: Option<f64>,
    /// The largest message, in bytes.
    pub max_message: Option<f64>,
    /// The most memory of a worker's VM, in bytes.
    pub memory_limit: Option<f64>,
    /// Whether compiled code can be stopped without losing its VM.
    pub interruptible: Option<bool>,
    /// How many workers that are stuck in C calls are replaced.
    pub max_abandoned: Option<f64>,
}

/// Checked options.
#[derive(Clone, Debug)]
pub struct Config {
    /// As given; compared without regard to case.
    pub name: Arc<str>,
    /// 1 to [`MAX_WORKERS`], at creation; `resize` changes the pool, not this.
    pub concurrency: usize,
    /// At least 1.
    pub sessions: usize,
    /// At least 1.
    pub backlog: usize,
    /// See [`WhenFull`].
    pub when_full: WhenFull,
    /// In bytes.
    pub stack_size: usize,
    /// In bytes.
    pub max_message: usize,
    /// In bytes, of each worker's VM; `usize::MAX` for none.
    pub memory_limit: usize,
    /// Whether the workers' compiled code has guards, by which it can be left.
    pub interruptible: bool,
    /// How many workers that are stuck in C calls are replaced by others.
    pub max_abandoned: usize,
    /// Runs once in each new worker VM.
    pub init: Option<Arc<Message>>,
    /// The creator's module paths (see `registry`), which a new worker has for its init.
    pub paths: u32,
}

impl Config {
    /// The defaults of every option.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            concurrency: waker::cores(),
            sessions: 256,
            backlog: 65_536,
            when_full: WhenFull::Wait,
            stack_size: 8 << 20,
            max_message: 1 << 30,
            memory_limit: usize::MAX,
            interruptible: true,
            max_abandoned: 64,
            init: None,
            paths: u32::MAX,
        }
    }
}

/// A whole number in a range, or the refusal that names the option.
pub fn whole(option: &str, value: f64, least: usize, most: usize) -> Result<usize> {
    if value.fract() == 0.0 && value >= least as f64 && value <= most as f64 {
        return Ok(value as usize);
    }
    Err(Error::BadOption(format!("{option} must be a whole number from {least} to {most}, got {value}")))
}

impl Options {
    /// Checks every option.
    ///
    /// # Errors
    /// [`Error::BadOption`], naming the option, what was given and what is accepted.
    pub fn check(self, init: Option<Arc<Message>>, paths: u32) -> Result<Config> {
        let name = self.name.unwrap_or_default();
        if name.trim().is_empty() {
            return Err(Error::BadOption("name is required: a string that is not empty".to_owned()));
        }
        if name.parse::<f64>().is_ok() {
            return Err(Error::BadOption(format!("name must not be a number, got '{name}'")));
        }
        let or = |option, value: Option<f64>, default, least, most| match value {
            Some(value) => whole(option, value, least, most),
            None => Ok(default),
        };
        let default = Config::named(&name);
        Ok(Config {
            concurrency: or("concurrency", self.concurrency, default.concurrency, 1, MAX_WORKERS)?,
            sessions: or("sessions", self.sessions, default.sessions, 1, 1 << 20)?,
            backlog: or("backlog", self.backlog, default.backlog, 1, 1 << 30)?,
            when_full: self.when_full.unwrap_or_default(),
            stack_size: or("stack_size", self.stack_size, default.stack_size, 128 << 10, 1 << 30)?,
            max_message: or("max_message", self.max_message, default.max_message, 64, (1 << 32) - 1)?,
            memory_limit: or("memory_limit", self.memory_limit, default.memory_limit, 1 << 20, 1 << 46)?,
            // Compiled code that meets a limit is left by a guard too.
            interruptible: self.interruptible.unwrap_or(default.interruptible) || self.memory_limit.is_some(),
            max_abandoned: or("max_abandoned", self.max_abandoned, default.max_abandoned, 0, MAX_WORKERS)?,
            init,
            paths,
            name: default.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_option_value_and_range() {
        let cases = [
            (Options::default(), "name is required: a string that is not empty"),
            (
                Options { name: Some("a".into()), concurrency: Some(0.0), ..Options::default() },
                "concurrency must be a whole number from 1 to 1024, got 0",
            ),
            (
                Options { name: Some("a".into()), sessions: Some(1.5), ..Options::default() },
                "sessions must be a whole number from 1 to 1048576, got 1.5",
            ),
        ];
        for (options, expected) in cases {
            let text = options.check(None, u32::MAX).map(|_| ()).expect_err(expected).to_string();
            assert_eq!(text, expected);
        }
    }
}
