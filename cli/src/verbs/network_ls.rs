//! `gantry network ls`: lists networks.

use clap::Args;
use gantry_proto::image::v1::Filter;
use gantry_proto::network::v1::{ListNetworksRequest, Network};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::filters;
use crate::format::Format;
use crate::inspect::network::driver;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.Name}}\t{{.Driver}}\t{{.Bridge}}\t{{.Subnet}}\t{{.Gateway}}\t{{.Used}}";

const FILTERS: [&str; 5] = ["driver", "id", "name", "scope", "type"];

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
    /// Only those that match: name, id (parts of it), driver, scope, type
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
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
        for filter in &self.filter {
            if !FILTERS.contains(&filter.key.as_str()) {
                return Err(Failure::new(format!(
                    "--filter {}: there is no such filter; there are {}",
                    filter.key,
                    FILTERS.join(", ")
                )));
            }
        }
        let mut networks = session
            .engine
            .networks()
            .list_networks(ListNetworksRequest {})
            .await?
            .into_inner()
            .networks;
        networks.retain(|network| self.fits(network));
        networks.sort_by(|a, b| a.name.cmp(&b.name));
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

impl NetworkLs {
    /// All keys must hold; of several values for one key any may.
    fn fits(&self, network: &Network) -> bool {
        let holds = |filter: &Filter| match filter.key.as_str() {
            "name" | "id" => network.name.contains(&filter.value),
            "driver" => driver(network) == filter.value,
            "scope" => filter.value == "local",
            // Nobody but the engine makes networks.
            "type" => filter.value == "builtin",
            _ => false,
        };
        FILTERS.iter().all(|key| {
            let mut alike = self.filter.iter().filter(|filter| filter.key == *key);
            alike.clone().next().is_none() || alike.any(holds)
        })
    }
}

fn row(network: &Network) -> Value {
    json!({
        "ID": network.name,
        "Name": network.name,
        "Driver": driver(network),
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
