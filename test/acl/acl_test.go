// Package acl_test runs Muster's daemons with the Consul ACL policies that ship,
// each with its own: they are enough, and the least.
package acl_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/consultest"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// policies is where the policies lie, a file a daemon.
const policies = "../../compose/consul/policies"

func TestMain(m *testing.M) { os.Exit(need.Main(m, "test/acl", "consul")) }

// waitTimeout bounds what is waited for.
const waitTimeout = 2 * time.Minute

func dial(servers *consultest.Cluster, token string) (*api.Client, error) {
	return api.NewClient(&api.Config{Address: servers.Servers()[0].Address, Token: token})
}

// TestPolicies has daemons with their own tokens alone do all that they do, and
// then tries what they must not.
func TestPolicies(t *testing.T) {
	dir := t.TempDir()
	if err := rig.Build(t.Context(), "../..", filepath.Join(dir, "built")); err != nil {
		t.Fatal(err)
	}
	k := rig.NewConsulTokens(policies)
	home := filepath.Join(dir, "cluster")
	must(t, os.Mkdir(home, 0o700))
	cfg := cluster.Config{Dir: home, Replicas: 2, ConsulSettings: []string{"discard_check_output = true"}}
	must(t, k.Secure(&cfg, dir))
	r := rig.StartFor(t, rig.Config{
		Config: cfg,
		Built:  filepath.Join(dir, "built"), NodeIDs: map[string]string{"alpha": "node-alpha"},
	})
	t.Run("enough", func(t *testing.T) { enough(t, r) })
	t.Run("nothing else", func(t *testing.T) { noMore(t, r.Servers, k) })
}

// enough takes a service through its life, and ends a replica of each daemon.
func enough(t *testing.T, r *rig.Rig) {
	ctx := t.Context()
	wait.Within(t, waitTimeout, "the node is ready", r.Ready)
	id, err := r.Create(ctx, rig.Null("web", 5))
	must(t, err)
	running := func(n int) {
		t.Helper()
		wait.Within(t, waitTimeout, fmt.Sprintf("%d tasks run", n), func(ctx context.Context) error {
			_, err := r.Running(ctx, id, n)
			return err
		})
	}
	running(5)
	operation := func(name string, do func(context.Context, musterv1.ControlServiceClient) error) {
		t.Helper()
		if err := r.Do(ctx, do); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	data := bytes.Repeat([]byte("x"), 200<<10)
	operation("create a config", func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.CreateConfig(ctx, &musterv1.CreateConfigRequest{Spec: &musterv1.ConfigSpec{Name: "app", Data: data}})
		if status.Code(err) == codes.AlreadyExists {
			return nil // by an attempt whose answer was lost
		}
		return err
	})
	operation("create a network", func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.CreateNetwork(ctx, &musterv1.CreateNetworkRequest{Spec: &musterv1.NetworkSpec{Name: "back"}})
		if status.Code(err) == codes.AlreadyExists {
			return nil // by an attempt whose answer was lost
		}
		return err
	})
	// A replica that takes over must be allowed to as well.
	for _, daemon := range cluster.Managers() {
		must(t, r.Process(cluster.Replica(daemon, 1)).Kill())
	}
	must(t, r.Scale(ctx, id, 9))
	running(9)
	must(t, r.Update(ctx, id, func(s *musterv1.ServiceSpec) { s.Task.ForceUpdate++ }))
	running(9)
	operation("read a config", func(ctx context.Context, c musterv1.ControlServiceClient) error {
		got, err := c.GetConfig(ctx, &musterv1.GetConfigRequest{Config: "app"})
		if err == nil && !bytes.Equal(got.Config.Spec.Data, data) {
			t.Error("the data of the config is not what was stored")
		}
		return err
	})
	operation("remove a config", func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.RemoveConfig(ctx, &musterv1.RemoveConfigRequest{Config: "app"})
		if status.Code(err) == codes.NotFound {
			return nil // by an attempt whose answer was lost
		}
		return err
	})
	operation("remove a network", func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.RemoveNetwork(ctx, &musterv1.RemoveNetworkRequest{Network: "back"})
		if status.Code(err) == codes.NotFound {
			return nil // by an attempt whose answer was lost
		}
		return err
	})
	must(t, r.RemoveAll(ctx))
	wait.Within(t, waitTimeout, "nothing is left", r.Empty)
	for _, daemon := range cluster.Managers() {
		log, err := os.ReadFile(r.Process(cluster.Replica(daemon, 2)).Log)
		must(t, err)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "Permission denied") || strings.Contains(line, "ACL") {
				t.Errorf("%s was refused something: %s", daemon, line)
			}
		}
	}
}

// noMore tries with each daemon's token what only others do.
func noMore(t *testing.T, servers *consultest.Cluster, k *rig.ConsulTokens) {
	stranger := strangers(t, servers)
	own := map[string][]string{
		"apid":          {"services", "specs", "names", "nodes", "clusters", "configs", "secrets", "sealing", "sealedblobs", "stacks", "stackblobs", "networks", "blobs", "authorities", "tokens"},
		"orchestratord": {"tasks", "rollouts"},
		"allocatord":    {"endpoints", "networkstates", "blocks", "allocator_fences"},
		"schedulerd":    {"assignments", "placements", "scheduler_fences"},
		"dispatcherd":   {"nodestates", "statuses"},
	}
	for _, daemon := range cluster.Managers() {
		t.Run(daemon, func(t *testing.T) {
			client, err := dial(servers, k.Of(daemon))
			must(t, err)
			write := func(key string) error {
				_, err := client.KV().Put(&api.KVPair{Key: key, Value: []byte("x")}, nil)
				return err
			}
			for owner, tables := range own {
				for _, table := range tables {
					err := write("muster/changes/" + table)
					switch {
					case daemon != owner:
						refused(t, "write the mark of "+table, err)
					case table == "tasks" || table == "assignments" || table == "statuses":
						refused(t, "write the mark of a table that has none", err)
					default:
						must(t, err)
					}
				}
				for _, table := range append(tables[:len(tables):len(tables)], "locks/"+subsystem(owner), "members/"+subsystem(owner)) {
					err := write("muster/" + table + "/zz")
					if daemon == owner {
						must(t, err)
						continue
					}
					refused(t, "write "+table, err)
				}
			}
			// Such a refusal is none that trying again could mend.
			store, err := consul.New(consul.Config{Address: servers.Servers()[0].Address, Token: k.Of(daemon)})
			must(t, err)
			for verb, op := range map[string]kv.Op{
				"compare-and-set":  {Verb: kv.CAS, Key: "muster/zz", Value: []byte("x")},
				"set":              {Verb: kv.Set, Key: "muster/zz", Value: []byte("x")},
				"delete if it was": {Verb: kv.DeleteCAS, Key: "muster/zz", Index: 1},
			} {
				if _, err := store.Txn(t.Context(), []kv.Op{op}); err == nil || errors.Is(err, kv.ErrConflict) || errors.Is(err, kv.ErrUnavailable) {
					t.Errorf("%s: %v", verb, err)
				}
			}
			must(t, store.Close())
			refused(t, "write elsewhere in the prefix", write("muster/zz"))
			refused(t, "write to another cluster", write("other/tasks/zz"))
			if p, _, err := client.KV().Get("other/tasks/zz", nil); err == nil && p != nil {
				t.Error("it reads another cluster")
			}
			outside(t, client, daemon, stranger)
			_, err = client.KV().DeleteTree("muster/", nil)
			refused(t, "delete everything", err)
			refused(t, "enter another service", client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web"}))
			_, _, err = client.ACL().TokenList(nil)
			refused(t, "list tokens", err)
			_, _, err = client.ACL().TokenCreate(&api.ACLToken{}, nil)
			refused(t, "make a token", err)
			_, _, err = client.Snapshot().Save(nil)
			refused(t, "take a snapshot", err)
			refused(t, "have the agent leave", client.Agent().Leave())
		})
	}
	client, err := dial(servers, "")
	must(t, err)
	_, err = client.KV().Put(&api.KVPair{Key: "muster/tasks/zz"}, nil)
	refused(t, "write without a token", err)
}

// others is what applications that share Consul with Muster have there.
type others struct {
	node, session, service string
}

// strangers registers a node that none of Muster's daemons uses, with a service and a
// session.
func strangers(t *testing.T, servers *consultest.Cluster) others {
	t.Helper()
	management, err := dial(servers, consultest.ManagementToken)
	must(t, err)
	o := others{node: "elsewhere", service: "web"}
	_, err = management.Catalog().Register(&api.CatalogRegistration{
		Node: o.node, Address: "192.0.2.1", Service: &api.AgentService{ID: "web", Service: o.service},
	}, nil)
	must(t, err)
	o.session, _, err = management.Session().CreateNoChecks(&api.SessionEntry{Node: o.node}, nil)
	must(t, err)
	return o
}

// outside tries what concerns the agent and others' nodes, services and sessions.
func outside(t *testing.T, client *api.Client, daemon string, o others) {
	t.Helper()
	_, err := client.Agent().Self()
	refused(t, "read the agent's settings", err)
	_, err = client.Agent().Metrics()
	refused(t, "read the agent's metrics", err)
	refused(t, "read the agent's log", monitor(t, client))
	members, err := client.Agent().Members(false)
	must(t, err)
	nodes, _, err := client.Catalog().Nodes(nil)
	must(t, err)
	if daemon != "apid" && len(nodes)+len(members) > 0 || len(nodes) > 1 {
		t.Errorf("it sees nodes %v and members %v", nodes, members)
	}
	services, _, err := client.Catalog().Services(nil)
	must(t, err)
	for name := range services {
		if daemon != "apid" && name != "muster-"+daemon || !strings.HasPrefix(name, "muster-") {
			t.Errorf("it sees service %s", name)
		}
	}
	if s, _, err := client.Session().Info(o.session, nil); err == nil && s != nil {
		t.Error("it sees a session of another node")
	}
	_, err = client.Session().Destroy(o.session, nil)
	refused(t, "end a session of another node", err)
	_, _, err = client.Session().CreateNoChecks(&api.SessionEntry{Node: o.node}, nil)
	refused(t, "open a session at another node", err)
	refused(t, "check an address for the agent", client.Agent().CheckRegister(&api.AgentCheckRegistration{
		Name: "probe", AgentServiceCheck: api.AgentServiceCheck{HTTP: "http://127.0.0.1/", Interval: "1s"},
	}))
	probe(t, client, "muster-"+daemon)
}

// monitor asks for the agent's log.
func monitor(t *testing.T, client *api.Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := client.Raw().Query("/v1/agent/monitor", new([]any), (&api.QueryOptions{}).WithContext(ctx))
	return err
}

// probe has the daemon's own service checked at an address that only Consul's host
// reaches. Consul allows that, and tells whether it answers. What it answers must not
// be shown.
func probe(t *testing.T, client *api.Client, service string) {
	t.Helper()
	const secret = "what only Consul's host can read"
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(secret)) }))
	defer private.Close()
	id := service + "-probe"
	must(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: id, Name: service, Check: &api.AgentServiceCheck{CheckID: id, HTTP: private.URL, Interval: "1s"},
	}))
	defer func() { must(t, client.Agent().ServiceDeregister(id)) }()
	wait.Within(t, waitTimeout, "the check was made", func(context.Context) error {
		checks, err := client.Agent().ChecksWithFilter("CheckID == \"" + id + "\"")
		if err != nil {
			return err
		}
		c := checks[id]
		if c == nil || c.Status != api.HealthPassing {
			return fmt.Errorf("check = %+v", c)
		}
		if strings.Contains(c.Output, secret) {
			t.Errorf("the check shows %q", c.Output)
		}
		return nil
	})
}

// subsystem is what locks call a daemon's work.
func subsystem(daemon string) string {
	if daemon == "apid" {
		return daemon
	}
	return strings.TrimSuffix(daemon, "d")
}

func refused(t *testing.T, what string, err error) {
	t.Helper()
	var status api.StatusError
	if !errors.As(err, &status) || status.Code != 403 {
		t.Errorf("%s is not refused: %v", what, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
