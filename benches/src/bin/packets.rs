//! Measures what a packet costs. Needs root, nft and ip.

use clap::Parser;
use netpolc_bench::packets::Error;
use netpolc_bench::packets::designs::designs;
use netpolc_bench::packets::load::Load;
use netpolc_bench::packets::measure::{Counts, Samples, measure, tables_of_their_own};
use netpolc_bench::packets::report::tables;
use netpolc_sandbox::enter_user_namespace;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Measures what a packet costs on a node with netpolc's rules, without rules, and with a rule for each policy.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of policies.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000")]
    policies: Vec<usize>,
    /// Also measure variants of netpolc's rules, and other shapes, at this number of policies.
    #[arg(long)]
    variants: Option<usize>,
    /// How often each design is measured after it was built.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// How often everything is built anew: where sockets and connections fall in the kernel's hash tables differs.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Leave the designs with a rule for each policy out.
    #[arg(long)]
    no_naive: bool,
}

fn main() -> ExitCode {
    let result = enter_user_namespace().map_err(Error::from).and_then(|()| run(&Args::parse()));
    match result {
        Ok(text) => {
            let written = io::stdout().write_all(text.as_bytes());
            ExitCode::from(u8::from(written.is_err()))
        }
        Err(error) => {
            // If standard error is gone, there is no one to tell.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<String, Error> {
    let loads: Vec<Load> = args.policies.iter().map(|&n| Load::new(n.max(1))).collect();
    let varied = args.variants.and_then(|n| args.policies.iter().position(|&p| p == n));
    let mut designs = designs(&loads, varied)?;
    designs.retain(|design| !(args.no_naive && design.name.starts_with("naive")));
    tables_of_their_own()?;
    let (mut samples, mut counts) = (Samples::new(), Counts::default());
    for _ in 0..args.repeats {
        measure(&designs, &loads, args.rounds, &mut samples, &mut counts)?;
    }
    let tables = tables(&designs, &samples);
    Ok(format!(
        "{} x {} rounds, {} packets, {} of them late\n{tables}",
        args.repeats, args.rounds, counts.sent, counts.late
    ))
}
