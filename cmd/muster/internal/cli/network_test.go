package cli_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
)

func TestNetworkCommands(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	back := strings.TrimSpace(s.must("network", "create", "--label", "team=web", "--subnet", "10.7.0.0/16", "--subnet", "fd00:7::/64", "--gateway", "10.7.0.1",
		"--ip-range", "10.7.128.0/17", "--aux-address", "router=fd00:7::1", "-o", "com.docker.network.driver.mtu=1400", "--internal", "back"))
	front := strings.TrimSpace(s.must("network", "create", "-d", "bridge", "front"))
	s.contains(s.must("network", "inspect", "BACK", "--format", "{{json .spec}}"), `"ipv6Enabled":true`, `"mtu":1400`, `"gateway":"10.7.0.1"`,
		`"range":"10.7.128.0/17"`, `"reserved":{"router":"fd00:7::1"}`, `"internal":true`)
	s.contains(s.must("network", "ls"), "NAME", "SUBNETS", "overlay", "bridge", "internal", "0/0")
	if got := strings.Fields(s.must("network", "ls", "-q")); !slices.Equal(got, []string{back, front}) {
		t.Errorf("network ls -q: %q, want the ids in order of name: %q", got, []string{back, front})
	}
	if got := strings.TrimSpace(s.must("network", "ls", "--filter", "label=team=web", "--format", "{{.spec.name}}")); got != "back" {
		t.Errorf("network ls --filter: %q, want back", got)
	}

	s.must("service", "create", "--detach", "--name", "db", "--network", "name=back,alias=sql", "postgres")
	s.must("service", "create", "--detach", "--name", "web", "--network", "back", "--network", "front", "-p", "8080-8081:80-81", "nginx")
	s.contains(s.must("network", "inspect", "back", "--format", "table"), "Name:     back", "Services: db, web", "Notes:    internal")
	s.contains(s.must("service", "ls"), "*:8080->80/tcp, *:8081->81/tcp")
	s.contains(s.fails(cli.ExitUsage, "", "network", "rm", "back"), `network "back" is used by services (db, web)`)
	s.contains(s.fails(cli.ExitUsage, "", "service", "create", "--detach", "--name", "other", "-p", "8081:80", "nginx"), `8081/tcp is published by service "web"`)
	s.contains(s.fails(cli.ExitUsage, "", "service", "create", "--detach", "--network", "nope", "nginx"), `there is no network "nope"`)

	s.must("service", "update", "--detach", "--network-rm", "front", "--network-add", "name=back,alias=www", "web")
	if got := strings.TrimSpace(s.must("service", "inspect", "web", "--format", "{{range .spec.task.networks}}{{.target}} {{.aliases}}{{end}}")); got != back+" [www]" {
		t.Errorf("networks after the update: %q, want %q", got, back+" [www]")
	}

	for _, tt := range []struct {
		words []string
		want  []string
	}{
		{[]string{"network", "inspect", "ba"}, []string{"back"}},
		{[]string{"network", "test", "d"}, []string{"db"}},
		{[]string{"network", "test", "db", ""}, nil},
		{[]string{"network", "test", "--from", ""}, []string{"worker1"}},
		{[]string{"network", "rm", "back", ""}, []string{"front", "ingress"}},
		{[]string{"service", "create", "--network", "fr"}, []string{"front"}},
	} {
		if got, _ := s.complete(tt.words...); !slices.Equal(got, tt.want) {
			t.Errorf("muster %s<TAB>: %q, want %q", strings.Join(tt.words, " "), got, tt.want)
		}
	}
	if got, _ := s.complete("events", "--kind", ""); !slices.Contains(got, "network") {
		t.Errorf("muster events --kind <TAB>: %q, want network among it", got)
	}
	s.must("service", "rm", "db", "web")
	s.contains(s.must("network", "rm", "back", "front"), "back\nfront")
}

func TestNetworkPruneAsksFirst(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	s.must("network", "prune") // there is nothing
	for _, name := range []string{"used", "one", "two", "kept"} {
		s.must("network", "create", "--label", "name="+name, name)
	}
	s.must("service", "create", "--detach", "--name", "web", "--network", "used", "-p", "80", "nginx")
	refused := s.fails(cli.ExitFailure, "n\n", "network", "prune", "--filter", "label=name!=kept")
	if s.contains(refused, "Remove one, two?", "nothing was removed"); strings.Contains(refused, "--help") {
		t.Errorf("an answer is taken for wrong usage: %s", refused)
	}
	s.contains(s.fails(cli.ExitFailure, "", "network", "prune"), "Remove kept, one, two?", "--force")
	out, errs, code := s.run("y\n", "network", "prune", "--filter", "label=name!=kept")
	if code != 0 || out != "one\ntwo\n" {
		t.Errorf("prune: exit code %d, %q, %s", code, out, errs)
	}
	if out := s.must("network", "prune", "-f"); out != "kept\n" {
		t.Errorf("prune --force removed %q, want kept", out)
	}
	if got := strings.Fields(s.must("network", "ls", "--format", "{{.spec.name}}")); !slices.Equal(got, []string{"ingress", "used"}) {
		t.Errorf("networks after prune: %q", got)
	}
}

func TestNetworkCreateRefusesWhatItCannotMean(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	for want, args := range map[string][]string{
		"--gateway: 10.8.0.1 is in none of the subnets":                    {"--subnet", "10.7.0.0/16", "--gateway", "10.8.0.1", "a"},
		`--ip-range: "x" is not an IP address`:                             {"--subnet", "10.7.0.0/16", "--ip-range", "x", "a"},
		"--aux-address":                                                    {"--aux-address", "r=10.7.0.1", "a"},
		"--gateway: subnet 10.7.0.0/16 has the gateway 10.7.0.1 already":   {"--subnet", "10.7.0.0/16", "--gateway", "10.7.0.1", "--gateway", "10.7.0.2", "a"},
		"--ip-range: subnet 10.7.0.0/16 has the range 10.7.4.0/24 already": {"--subnet", "10.7.0.0/16", "--ip-range", "10.7.4.0/24", "--ip-range", "10.7.5.0/24", "a"},
		"is not a number":                                                  {"--opt", "com.docker.network.driver.mtu=x", "a"},
		`--aux-address: "10.7.0.9": want name=address`:                     {"--subnet", "10.7.0.0/16", "--aux-address", "10.7.0.9", "a"},
		`NAME: "host" is reserved`:                                         {"host"},
		"--subnet: 10.7.0.1/16 has bits outside its prefix":                {"--subnet", "10.7.0.1/16", "a"},
		"--mtu: is 100;":                                                   {"--mtu", "100", "a"},
		"--mtu: is 1200;":                                                  {"--ipv6", "--mtu", "1200", "a"},
		"--opt: x: is not an option":                                       {"--opt", "x=y", "a"},
		`--opt: "x" has no value; want key=value`:                          {"--opt", "x", "a"},
		"is a second IPv4 subnet, after that of --subnet 10.7.0.0/16;":     {"--subnet", "10.7.0.0/16", "--subnet", "10.8.0.0/16", "a"},
		"--internal: the ingress network leads in":                         {"--ingress", "--internal", "a"},
	} {
		s.contains(s.fails(cli.ExitUsage, "", append([]string{"network", "create"}, args...)...), want)
	}
	for want, args := range map[string][]string{
		"--opt: no node has a network plugin that can encrypt": {"--opt", "encrypted", "a"},
		"--driver: no node has":                                {"-d", "cni", "a"},
	} {
		s.contains(s.fails(cli.ExitUsage, "", append([]string{"network", "create"}, args...)...), want)
	}
}

func TestServiceCreateExplainsNetworksAndPorts(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	s.must("network", "create", "back")
	for want, args := range map[string][]string{
		"--network: a name is missing":                                   {"--network", ""},
		`--network: invalid alias "x.y"`:                                 {"--network", "name=back,alias=x.y"},
		`--network: there is no network "nope"`:                          {"--network", "nope"},
		`--network: "ingress" is the ingress network`:                    {"--network", "ingress"},
		`--network: network "back" is given twice`:                       {"--network", "back", "--network", "back"},
		"--network: a task with network host can have no other networks": {"--network", "back", "--network", "host"},
		"target is missing":                                              {"--publish", "published=8080,mode=host"},
		"at most 256 ports":                                              {"--publish", "8000-8256:80-336"},
		"--publish: has 257 entries; at most 256 are allowed":            {"--publish", "8000-8199:1-200", "--publish", "8200-8256:201-257"},
		"8080/tcp is already published by --publish 8080:80":             {"--publish", "8080:80", "--publish", "8080:81"},
		`network "back" is given twice, also by --network name=back`:     {"--network", "name=back", "--network", "back"},
		`"/a" is already the target of --mount type=volume,target=/a`:    {"--mount", "type=volume,target=/a", "--mount", "type=volume,target=/a"},
		"on the address 127.0.0.1 only, because nodes publish":           {"--publish", "127.0.0.1:8080:80"},
		"give 8080-8081:80-81, and restrict":                             {"--publish", "[::1]:8080-8081:80-81/udp"},
		"can only be published in mode HOST":                             {"--publish", "8080:80", "--network", "host"},
		"a task with network none cannot publish ports":                  {"--publish", "8080:80", "--network", "none"},
		"4789/udp is used by nodes for the traffic of networks":          {"--publish", "4789:4789/udp"},
	} {
		args := append(append([]string{"service", "create", "--detach"}, args...), "nginx:1")
		s.contains(s.fails(cli.ExitUsage, "", args...), want)
	}
}

func TestClusterUpdateSetsAddressPools(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	network := func() string {
		return strings.TrimSpace(s.must("cluster", "inspect", "--format", "{{json .spec.network}}"))
	}
	s.must("cluster", "update", "--default-addr-pool", "172.20.0.0/14", "--default-addr-pool", "fd00:9::/48", "--default-addr-pool-mask-length", "24")
	if got, want := network(), `{"addressPools":[{"base":"172.20.0.0/14","size":24},{"base":"fd00:9::/48","size":64}]}`; got != want {
		t.Errorf("network is %s, want %s", got, want)
	}
	s.must("cluster", "update", "--default-addr-pool", "")
	if got, want := network(), `{}`; got != want {
		t.Errorf("network is %s, want %s", got, want)
	}
	s.must("cluster", "update", "--reserved-port", "53", "--reserved-port", "7700-7705/tcp", "--max-networks", "5")
	if got, want := network(), `{"maxNetworks":5,"reservedPorts":{"ports":["53","7700-7705/tcp"]}}`; got != want {
		t.Errorf("network is %s, want %s", got, want)
	}
	s.contains(s.fails(cli.ExitUsage, "", "service", "create", "--detach", "--publish", "53:53/udp", "nginx:1"), "53/udp is reserved", "--reserved-port")
	s.contains(s.fails(cli.ExitUsage, "", "cluster", "update", "--reserved-port", "x"), "--reserved-port", "22/tcp")
	s.must("cluster", "update", "--reserved-port", "")
	if got, want := network(), `{"maxNetworks":5,"reservedPorts":{}}`; got != want {
		t.Errorf("network is %s, want %s", got, want)
	}
	s.contains(s.fails(cli.ExitUsage, "", "cluster", "update", "--default-addr-pool-mask-length", "24"), "--default-addr-pool")
	s.contains(s.fails(cli.ExitUsage, "", "cluster", "update", "--max-networks", "0"), "--max-networks: is 0", "from 1 on")
	s.must("cluster", "update", "--max-networks", "1")
	s.must("network", "create", "back")
	full := s.fails(cli.ExitFailure, "", "network", "create", "front")
	if s.contains(full, "has 1 network, and may have 1", "--max-networks"); strings.Contains(full, "ResourceExhausted") {
		t.Errorf("the error has the name of a code: %s", full)
	}
	s.contains(s.fails(cli.ExitUsage, "", "cluster", "update", "--default-addr-pool", "10.0.0.0/20"), "--default-addr-pool", "from 20 to 29")
	s.contains(s.fails(cli.ExitUsage, "", "cluster", "update"), "--default-addr-pool")
}
