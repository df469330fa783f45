//! `gantry network ls`: lists networks.

use clap::Args;
use gantry_proto::network::v1::{ListNetworksRequest, Network};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::format::Format;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.Name}}\t{{.Driver}}\t{{.Bridge}}\t{{.Subnet}}\t{{.Gateway}}\t{{.Used}}";

const HEADINGS: [(&str, &str); 7] = [
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Bridge", "BRIDGE"),
    ("Subnet", "SUBNET"),
    ("Gateway", "GATEWAY"),
    ("MTU", "MTU"),
    ("Used", "ADDRESSES"),
];

#[derive(Debug, Args)]
pub(crate) struct NetworkLs {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// For Docker's sake; nothing is cut
    #[arg(long, hide = true)]
    no_trunc: bool,
    /// table, json, or a template
    #[arg(long)]
    format: Option<String>,
}

impl NetworkLs {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let networks = session
            .engine
            .networks()
            .list_networks(ListNetworksRequest {})
            .await?
            .into_inner()
            .networks;
        if self.quiet {
            for network in &networks {
                terminal::println(&network.name)?;
            }
            return Ok(0);
        }
        let rows: Vec<Value> = networks.iter().map(row).collect();
        let text = format
            .rows(&rows, TABLE, &HEADINGS)
            .map_err(|e| Failure::of(&e))?;
        terminal::print(&text)?;
        Ok(0)
    }
}

fn row(network: &Network) -> Value {
    json!({
        "ID": network.name,
        "Name": network.name,
        "Driver": network.driver,
        "Scope": "local",
        "Bridge": network.bridge,
        "Subnet": network.subnet,
        "Gateway": network.gateway,
        "MTU": network.mtu,
        "Used": match network.addresses_total {
            0 => String::new(),
            total => format!("{}/{total}", network.addresses_used),
        },
    })
}
