package compose

// serviceKeys are the keys of services that are not about their containers.
func serviceKeys() []key {
	const s = "services.*."
	const dependency = s + "depends_on.*."
	const health = s + "healthcheck."
	const port = s + "ports."
	return []key{
		{path: s + "build", effect: honoured, whole: true, text: "`muster up` and `muster stack deploy --build` build. Otherwise a service needs an `image`, and `build` has no effect."},
		{path: s + "depends_on", effect: honoured, text: "List or map. Muster holds tasks back until the condition holds."},
		{path: s + "depends_on.*", effect: honoured, text: ""},
		{path: dependency + "restart", effect: honoured, text: "The service's tasks are replaced when those of the other service were."},
		{path: dependency + "required", effect: honoured, text: "`false`: a service that does not exist is not waited for."},
		{path: dependency + "condition", effect: honoured, text: "`service_started`, `service_healthy` and `service_completed_successfully`."},
		{path: s + "healthcheck", effect: honoured, text: ""},
		{path: health + "disable", effect: honoured, text: "Turns off that of the image."},
		{path: health + "interval", effect: honoured, text: ""},
		{path: health + "retries", effect: honoured, text: ""},
		{path: health + "test", effect: honoured, text: ""},
		{path: health + "timeout", effect: honoured, text: ""},
		{path: health + "start_period", effect: honoured, text: ""},
		{path: health + "start_interval", effect: honoured, text: ""},
		{path: s + "ports", effect: honoured, text: "Short and long form, ranges too."},
		{path: port + "name", effect: honoured, text: ""},
		{path: port + "mode", effect: honoured, text: "`ingress` (the default) on every node, or `host` on the node that runs the task."},
		{path: port + "host_ip", effect: honoured, text: "`0.0.0.0` and `::`. Other addresses are refused."},
		{path: port + "target", effect: honoured, text: ""},
		{path: port + "published", effect: honoured, text: "One port for one target. Without one, a port is chosen."},
		{path: port + "protocol", effect: honoured, text: "`tcp`, `udp` and `sctp`."},
		{path: port + "app_protocol", effect: ignored, text: "a hint for other tools"},
		{path: s + "expose", effect: ignored, text: "services on the same network reach all ports"},
		{path: s + "stdin_open", effect: honoured, text: ""},
		{path: s + "tty", effect: honoured, text: ""},
		{path: s + "develop", effect: ignored, text: "it is for \"docker compose watch\""},
		{path: s + "profiles", effect: honoured, text: "A service with profiles is left out unless one of them is active."},
		{path: s + "restart", effect: honoured, text: "`no`, `always`, `unless-stopped` and `on-failure[:N]`, where `deploy.restart_policy` is not given."},
		{path: s + "scale", effect: honoured, text: "As `deploy.replicas`."},
		{path: s + "attach", effect: ignored, text: "it is for the output of \"docker compose up\""},
		{path: s + "container_name", effect: honoured, text: "A further alias of the service on its networks. Containers have names of their own."},
		{path: s + "provider", effect: refused, text: "services of other providers are not supported"},
		{path: s + "extends", effect: honoured, text: "Local files only."},
		{path: s + "extends.service", effect: honoured, text: ""},
		{path: s + "extends.file", effect: honoured, text: ""},
		{path: s + "links", effect: honoured, text: "The service starts after the other one. `SERVICE:ALIAS` is refused."},
		{path: s + "external_links", effect: refused, text: "put both services on one network, and use the service's name"},
		{path: s + "pre_start", effect: refused, text: "containers that run before are not supported yet; make it a service, with depends_on and service_completed_successfully"},
		{path: s + "post_start", effect: refused, text: "commands after the start are not supported; run them in the container's command"},
		{path: s + "pre_stop", effect: refused, text: "commands before the stop are not supported; handle the stop signal"},
	}
}

// deployKeys are the keys below deploy.
func deployKeys() []key {
	const d = "services.*.deploy."
	keys := []key{
		{path: "services.*.deploy", effect: honoured, text: ""},
		{path: d + "mode", effect: honoured, text: "`replicated` and `global`. Jobs are refused."},
		{path: d + "endpoint_mode", effect: honoured, text: "`vip` and `dnsrr`."},
		{path: d + "replicas", effect: honoured, text: ""},
		{path: d + "labels", effect: honoured, text: "Labels of the service."},
	}
	for _, when := range []string{"rollback_config", "update_config"} {
		keys = append(keys,
			key{path: d + when, effect: honoured},
			key{path: d + when + ".parallelism", effect: honoured, text: "Without one, 1; `0` is all at once."},
			key{path: d + when + ".delay", effect: honoured},
			key{path: d + when + ".failure_action", effect: honoured, text: "`pause`, `continue` and, for updates, `rollback`."},
			key{path: d + when + ".monitor", effect: honoured},
			key{path: d + when + ".max_failure_ratio", effect: honoured},
			key{path: d + when + ".order", effect: honoured, text: "`stop-first` and `start-first`."},
		)
	}
	return append(keys, []key{
		{path: d + "resources", effect: honoured, text: ""},
		{path: d + "resources.limits", effect: honoured, text: ""},
		{path: d + "resources.limits.cpus", effect: honoured, text: ""},
		{path: d + "resources.limits.memory", effect: honoured, text: ""},
		{path: d + "resources.limits.pids", effect: honoured, text: ""},
		{path: d + "resources.reservations", effect: honoured, text: ""},
		{path: d + "resources.reservations.cpus", effect: honoured, text: ""},
		{path: d + "resources.reservations.memory", effect: honoured, text: ""},
		{path: d + "resources.reservations.generic_resources", effect: refused, text: "generic resources are not supported yet; use placement constraints on node labels"},
		{path: d + "resources.reservations.devices", effect: refused, text: "devices are not supported yet; use placement constraints on node labels"},
		{path: d + "restart_policy", effect: honoured, text: ""},
		{path: d + "restart_policy.condition", effect: honoured, text: "`none`, `on-failure` and `any`."},
		{path: d + "restart_policy.delay", effect: honoured, text: ""},
		{path: d + "restart_policy.max_attempts", effect: honoured, text: ""},
		{path: d + "restart_policy.window", effect: honoured, text: ""},
		{path: d + "placement", effect: honoured, text: ""},
		{path: d + "placement.constraints", effect: honoured, text: "`node.role==manager` is refused: managers are daemons, not nodes."},
		{path: d + "placement.preferences", effect: refused, text: "placement preferences are not supported yet; tasks are always spread over nodes"},
		{path: d + "placement.max_replicas_per_node", effect: honoured, text: ""},
	}...)
}
