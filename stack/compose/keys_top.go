package compose

const (
	nodePrivilege = "containers of a cluster do not share it with their node"
	noJobs        = "jobs are not supported yet"
	noModels      = "Muster runs no AI models; run one as a service, and give its address in environment"
)

// topKeys are the keys at the top of a file.
func topKeys() []key {
	return []key{
		{path: "version", effect: honoured, text: "Files of version 3 and files without a version are read alike."},
		{path: "name", effect: honoured, text: "The stack's name, unless it is given on the command line."},
		{path: "include", effect: honoured, text: "Local files only."},
		{path: "include.path", effect: honoured, text: "A file or several that are merged."},
		{path: "include.env_file", effect: honoured, text: "Variables for the included file."},
		{path: "include.project_directory", effect: honoured, text: "What its relative paths start from."},
		{path: "services", effect: honoured, text: "A service `NAME` becomes `STACK_NAME`."},
		{path: "services.*", effect: honoured, text: "See the next tables."},
		{path: "networks", effect: honoured, text: "Networks that no active service uses are left out."},
		{path: "networks.*", effect: honoured, text: "A network `STACK_NAME`."},
		{path: "volumes", effect: honoured, text: "Volumes are made on the nodes by the mounts that name them."},
		{path: "volumes.*", effect: honoured, text: "A volume `STACK_NAME` on each node that runs a task with it."},
		{path: "secrets", effect: honoured, text: "Secrets that no active service uses are left out."},
		{path: "secrets.*", effect: honoured, text: "A secret `STACK_NAME`."},
		{path: "configs", effect: honoured, text: "Configs that no active service uses are left out."},
		{path: "configs.*", effect: honoured, text: "A config `STACK_NAME`."},
		{path: "jobs", effect: refused, text: noJobs},
		{path: "models", effect: refused, text: noModels},
	}
}

// objectKeys are the keys of networks, volumes, secrets and configs.
func objectKeys() []key {
	return []key{
		{path: "networks.*.name", effect: honoured, text: "The network's full name. An external network `host` or `none` is the node's own network, or none."},
		{path: "networks.*.driver", effect: honoured, text: "`overlay` (the default), `bridge` for a network on each node by itself, or `cni`."},
		{path: "networks.*.driver_opts", effect: honoured, text: "`com.docker.network.driver.mtu` and `encrypted`; with driver `cni` the option `config`. Others are refused."},
		{path: "networks.*.ipam", effect: honoured, text: ""},
		{path: "networks.*.ipam.driver", effect: refused, text: "only the built-in allocator gives addresses; leave the driver out", accepted: []string{"default"}},
		{path: "networks.*.ipam.config", effect: honoured, text: "At most one subnet for each of IPv4 and IPv6."},
		{path: "networks.*.ipam.config.subnet", effect: honoured, text: ""},
		{path: "networks.*.ipam.config.ip_range", effect: honoured, text: ""},
		{path: "networks.*.ipam.config.gateway", effect: honoured, text: ""},
		{path: "networks.*.ipam.config.aux_addresses", effect: honoured, text: "Addresses that no task gets."},
		{path: "networks.*.ipam.options", effect: refused, text: "the built-in allocator has no options; leave them out"},
		{path: "networks.*.external", effect: honoured, text: "The network must exist before the stack is deployed."},
		{path: "networks.*.external.name", effect: honoured, text: "The old form of `name`."},
		{path: "networks.*.internal", effect: honoured, text: ""},
		{path: "networks.*.enable_ipv4", effect: honoured, text: "`false` is refused."},
		{path: "networks.*.enable_ipv6", effect: honoured, text: ""},
		{path: "networks.*.attachable", effect: honoured, text: "Kept for Docker's clients. Only tasks join networks."},
		{path: "networks.*.labels", effect: honoured, text: ""},

		{path: "volumes.*.name", effect: honoured, text: "The volume's full name."},
		{path: "volumes.*.driver", effect: honoured, text: "A volume driver of the nodes."},
		{path: "volumes.*.driver_opts", effect: honoured, text: ""},
		{path: "volumes.*.external", effect: honoured, text: "The volume's name is used without the stack's. A node that does not have the volume makes an empty one."},
		{path: "volumes.*.external.name", effect: honoured, text: "The old form of `name`."},
		{path: "volumes.*.labels", effect: honoured, text: ""},

		{path: "secrets.*.name", effect: honoured, text: "The secret's full name."},
		{path: "secrets.*.environment", effect: honoured, text: "The data is the value of a variable."},
		{path: "secrets.*.file", effect: honoured, text: "At most 500 KiB. A relative path must stay in the project directory."},
		{path: "secrets.*.external", effect: honoured, text: "The secret must exist before the stack is deployed."},
		{path: "secrets.*.external.name", effect: honoured, text: "The old form of `name`."},
		{path: "secrets.*.labels", effect: honoured, text: ""},
		{path: "secrets.*.driver", effect: honoured, text: "A driver for secrets that are kept elsewhere."},
		{path: "secrets.*.driver_opts", effect: honoured, text: ""},
		{path: "secrets.*.template_driver", effect: honoured, text: "`golang` fills in templates."},

		{path: "configs.*.name", effect: honoured, text: "The config's full name."},
		{path: "configs.*.content", effect: honoured, text: "The data itself."},
		{path: "configs.*.environment", effect: honoured, text: "The data is the value of a variable."},
		{path: "configs.*.file", effect: honoured, text: "At most 1000 KiB. A relative path must stay in the project directory."},
		{path: "configs.*.external", effect: honoured, text: "The config must exist before the stack is deployed."},
		{path: "configs.*.external.name", effect: honoured, text: "The old form of `name`."},
		{path: "configs.*.labels", effect: honoured, text: ""},
		{path: "configs.*.template_driver", effect: honoured, text: "`golang` fills in templates."},
	}
}
