//! Measures what a packet costs, and what it takes to load the rules. Needs root, nft and ip.

use clap::Parser;
use netpolc_bench::packets::Error;
use netpolc_bench::packets::designs::{Choice, Design, Designs};
use netpolc_bench::packets::measure::{Repeat, repeat};
use netpolc_bench::packets::report::Results;
use netpolc_sandbox::enter_user_namespace;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Measures what a packet costs on a node under each of netpolc's backends, without rules, and with a rule for each policy;
/// and what it takes to load and to change the rules. Prints Markdown.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of policies.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000")]
    policies: Vec<usize>,
    /// How often each design is measured after it was built, at most 600.
    #[arg(long, default_value_t = 80)]
    rounds: usize,
    /// How often everything is built anew: where sockets and connections fall in the kernel's hash tables differs.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Also measure variants of our rules for nftables, and other shapes, at this number of policies.
    #[arg(long)]
    variants: Option<usize>,
    /// Measure only designs whose names begin so, and what they are compared with.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave the designs with a rule for each policy out.
    #[arg(long)]
    no_naive: bool,
    /// Also write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep bundles and scripts in this directory, and use those that an earlier run with the same options left there.
    #[arg(long, value_name = "DIR")]
    bundles: Option<PathBuf>,
    /// The loader. Without it: cargo builds one if it has started this program, else it is taken from beside it.
    #[arg(long)]
    loader: Option<PathBuf>,
    /// Be the process of one repeat, with the designs in a directory.
    #[arg(long, hide = true, value_name = "DIR", requires = "seed", requires = "loader")]
    work: Option<PathBuf>,
    #[arg(long, hide = true)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match (&args.work, args.seed, &args.loader) {
        (Some(dir), Some(seed), Some(loader)) => one(&args, dir, seed, loader),
        _ => run(&args),
    };
    match result.and_then(|text| Ok(io::stdout().write_all(text.as_bytes())?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

/// To people. If standard error is gone, there is no one to tell.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn run(args: &Args) -> Result<String, Error> {
    let loader = find_loader(args.loader.as_deref())?;
    let start = Instant::now();
    let progress = |what: String| say(&format!("{:6.1} s  {what}", start.elapsed().as_secs_f64()));
    enter_user_namespace()?;
    let dir = tempfile::tempdir()?;
    let kept = args.bundles.as_ref().map(|dir| fs::create_dir_all(dir).and_then(|()| dir.canonicalize()));
    let kept = kept.transpose()?;
    let choice = Choice {
        policies: args.policies.iter().map(|&n| n.max(1)).collect(),
        variants: args.variants,
        no_naive: args.no_naive,
    };
    let mut all = Designs::in_dir(choice, kept.as_deref().unwrap_or(dir.path()), &progress)?;
    let wanted = |d: &Design| {
        args.only.is_empty()
            || ["floor", "drop"].contains(&d.name.as_str())
            || args.only.iter().any(|only| d.name.starts_with(only))
    };
    all.designs.retain(wanted);
    serde_json::to_writer(BufWriter::new(File::create(wanted_file(dir.path()))?), &all.designs)?;
    let mut results =
        Results { designs: all.designs, left_out: all.left_out, rounds: args.rounds, repeats: Vec::new() };
    for seed in 0..args.repeats as u64 {
        let status = Command::new(std::env::current_exe()?)
            .args(["--rounds", &args.rounds.to_string(), "--seed", &seed.to_string(), "--loader"])
            .arg(&loader)
            .arg("--work")
            .arg(dir.path())
            .status()?;
        if !status.success() {
            return Err(Error::Wrong(format!("a repeat failed: {status}")));
        }
        let file = BufReader::new(File::open(repeat_file(dir.path(), seed))?);
        let done: Repeat = serde_json::from_reader(file)?;
        done.left_out.iter().for_each(|(key, reason)| say(&format!("left out: {key}: {reason}")));
        results.repeats.push(done);
        progress(format!("repeat {} of {}", seed + 1, args.repeats));
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&results.json())? + "\n")?;
    }
    Ok(results.markdown())
}

/// One repeat.
fn one(args: &Args, dir: &Path, seed: u64, loader: &Path) -> Result<String, Error> {
    let designs: Vec<Design> = serde_json::from_reader(BufReader::new(File::open(wanted_file(dir))?))?;
    let done = repeat(&designs, loader, args.rounds, seed)?;
    serde_json::to_writer(BufWriter::new(File::create(repeat_file(dir, seed))?), &done)?;
    Ok(String::new())
}

fn wanted_file(dir: &Path) -> PathBuf {
    dir.join("wanted.json")
}

fn repeat_file(dir: &Path, seed: u64) -> PathBuf {
    dir.join(format!("repeat-{seed}.json"))
}

/// The loader, of the same profile as this program.
fn find_loader(given: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = given {
        return Ok(path.canonicalize()?);
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let mut command = Command::new(cargo);
        let status = command
            .args(["build", "--quiet", "--package", "netpol-loader", "--profile", profile])
            .status()?;
        if !status.success() {
            return Err(Error::Wrong(format!("the loader cannot be built: {status}")));
        }
    }
    let beside = std::env::current_exe()?.with_file_name("netpol-loader");
    match beside.is_file() {
        true => Ok(beside),
        false => Err(Error::Wrong(
            "there is no netpol-loader beside this program: build it, or name one with --loader".into(),
        )),
    }
}
