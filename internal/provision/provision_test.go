package provision_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/compose/consul/policies"
	"github.com/musterhq/muster/internal/provision"
	"github.com/musterhq/muster/test/kit/consultest"
	testneed "github.com/musterhq/muster/test/kit/need"
)

func cluster(t *testing.T, dir string, servers int) *provision.Cluster {
	t.Helper()
	rules, err := policies.All()
	if err != nil {
		t.Fatal(err)
	}
	c, err := provision.New(provision.Config{Dir: dir, Servers: servers, Policies: rules})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// content returns all files below a directory, and fails if others than their
// owner may read one.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s may be read by others: %v", name, info.Mode())
		}
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestFilesAreMadeOnce makes all files twice, and then for more servers.
func TestFilesAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	must(t, cluster(t, dir, 1).Files())
	first := content(t, dir)
	must(t, cluster(t, dir, 1).Files())
	if d := cmp.Diff(first, content(t, dir)); d != "" {
		t.Errorf("the second time changes files: %s", d)
	}
	must(t, cluster(t, dir, 3).Files())
	more := content(t, dir)
	for name, text := range first {
		if more[name] != text && name != "consul-1/consul.json" {
			t.Errorf("two servers more change %s", name)
		}
	}
	if _, ok := more["consul-3/server.pem"]; !ok {
		t.Error("there is no third server")
	}
}

// TestEachHasItsOwn looks for what is whose.
func TestEachHasItsOwn(t *testing.T) {
	dir := t.TempDir()
	c := cluster(t, dir, 3)
	must(t, c.Files())
	must(t, os.WriteFile(c.Path(provision.Secrets, provision.ClusterKey), []byte("the cluster key\n"), 0o600))
	must(t, c.Deliver(provision.Outputs{ManagerJoin: "manager join", WorkerJoin: "worker join", Admin: "admin token", Authorities: "pem", ViewerCert: "cert", ViewerKey: "key"}))
	files := content(t, dir)
	secrets := map[string][]string{
		"the cluster key": {"apid", "dispatcherd", "secrets"}, "worker join": {"worker"}, "admin token": {"admin"},
		"manager join":                     {"allocatord", "dispatcherd", "orchestratord", "schedulerd"},
		files["secrets/gossip.key"]:        {"consul-1", "consul-2", "consul-3", "secrets"},
		files["secrets/management.token"]:  {"consul-1", "consul-2", "consul-3", "secrets"},
		files["secrets/consul-ca-key.pem"]: {"secrets"}, files["apid/consul.token"]: {"apid"}, files["schedulerd/consul.token"]: {"schedulerd"},
	}
	for secret, owners := range secrets {
		var found []string
		for name, text := range files {
			if folder := strings.Split(name, "/")[0]; strings.Contains(text, strings.TrimSpace(secret)) && !slices.Contains(found, folder) {
				found = append(found, folder)
			}
		}
		slices.Sort(found)
		if !slices.Equal(found, owners) {
			t.Errorf("a secret of %v is with %v", owners, found)
		}
	}
	if c.WantsAdmin() {
		t.Error("the administrator's token is delivered, and wanted")
	}
}

// TestServerCertificates checks what Consul's servers show.
func TestServerCertificates(t *testing.T) {
	dir := t.TempDir()
	c := cluster(t, dir, 3)
	must(t, c.Files())
	roots := x509.NewCertPool()
	files := content(t, dir)
	if !roots.AppendCertsFromPEM([]byte(files["apid/consul-ca.pem"])) {
		t.Fatal("daemons know no authority")
	}
	block, _ := pem.Decode([]byte(files["consul-2/server.pem"]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	for _, name := range []string{"consul-2", "server.dc1.consul", "localhost", "127.0.0.1"} {
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		must(t, err)
	}
	if err := leaf.VerifyHostname("consul-1"); err == nil {
		t.Error("one server can stand in for another")
	}
	// One that was broken is made again.
	must(t, os.WriteFile(c.Path("consul-2", "server.pem"), []byte("nonsense"), 0o600))
	must(t, c.Files())
	_, err = tls.LoadX509KeyPair(c.Path("consul-2", "server.pem"), c.Path("consul-2", "server-key.pem"))
	must(t, err)
}

// TestConsulTakesIt puts policies and tokens into a real Consul, twice: what was
// changed meanwhile is as it should be again.
func TestConsulTakesIt(t *testing.T) {
	testneed.Program(t, "consul")
	dir := t.TempDir()
	c := cluster(t, dir, 1)
	must(t, c.Files())
	server := consultest.Start(t, consultest.ACL)
	dial := func(token string) *api.Client {
		client, err := api.NewClient(&api.Config{Address: server.Address, Token: token})
		must(t, err)
		return client
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	admin := dial(consultest.ManagementToken)
	nowhere, err := api.NewClient(&api.Config{Address: "127.0.0.1:1"})
	must(t, err)
	must(t, c.ACL(ctx, []*api.Client{nowhere, admin}))
	p, _, err := admin.ACL().PolicyReadByName("muster-schedulerd", nil)
	must(t, err)
	rules := p.Rules
	p.Rules = ""
	_, _, err = admin.ACL().PolicyUpdate(p, nil)
	must(t, err)
	before, _, err := admin.ACL().TokenList(nil)
	must(t, err)
	must(t, c.ACL(ctx, []*api.Client{admin}))
	after, _, err := admin.ACL().TokenList(nil)
	must(t, err)
	if len(before) != len(after) {
		t.Errorf("the second time makes %d tokens", len(after)-len(before))
	}
	p, _, err = admin.ACL().PolicyReadByName("muster-schedulerd", nil)
	must(t, err)
	if p.Rules != rules {
		t.Errorf("the policy is %q", p.Rules)
	}
	b, err := os.ReadFile(c.Path("schedulerd", "consul.token"))
	must(t, err)
	scheduler := dial(strings.TrimSpace(string(b)))
	put := func(key string) error {
		_, err := scheduler.KV().Put(&api.KVPair{Key: key}, nil)
		return err
	}
	must(t, put("muster/assignments/zz"))
	var status api.StatusError
	if err := put("muster/tasks/zz"); !errors.As(err, &status) || status.Code != http.StatusForbidden {
		t.Errorf("schedulerd writes tasks: %v", err)
	}
	b, err = os.ReadFile(c.Path("consul-1", "agent.token"))
	must(t, err)
	if _, err := dial(strings.TrimSpace(string(b))).Operator().RaftGetConfiguration(nil); err != nil {
		t.Errorf("a server cannot ask for its leader: %v", err)
	}
}

// TestACLSaysWhyItWaited gives up with its context.
func TestACLSaysWhyItWaited(t *testing.T) {
	c := cluster(t, t.TempDir(), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	nowhere, err := api.NewClient(&api.Config{Address: "127.0.0.1:1"})
	must(t, err)
	if err := c.ACL(ctx, []*api.Client{nowhere}); err == nil || !strings.Contains(err.Error(), "policy muster-consul") {
		t.Errorf("it says %v", err)
	}
}

func TestSettingsDeny(t *testing.T) {
	dir := t.TempDir()
	c := cluster(t, dir, 3)
	must(t, c.Files())
	b, err := os.ReadFile(c.Path("consul-1", "consul.json"))
	must(t, err)
	var got struct {
		Encrypt string
		ACL     struct {
			Enabled       bool
			DefaultPolicy string `json:"default_policy"`
		}
		Ports map[string]int
		Join  []string `json:"retry_join"`
	}
	must(t, json.Unmarshal(b, &got))
	if !got.ACL.Enabled || got.ACL.DefaultPolicy != "deny" || got.Encrypt == "" || got.Ports["http"] != -1 {
		t.Errorf("the settings are open: %s", b)
	}
	if d := cmp.Diff([]string{"consul-2", "consul-3"}, got.Join); d != "" {
		t.Error(d)
	}
}

func TestWrongConfig(t *testing.T) {
	rules := map[string]string{"apid": ""}
	for name, cfg := range map[string]provision.Config{
		"no directory":     {Servers: 1, Policies: rules},
		"no servers":       {Dir: "x", Policies: rules},
		"too many servers": {Dir: "x", Servers: 8, Policies: rules},
		"no daemons":       {Dir: "x", Servers: 1},
	} {
		if _, err := provision.New(cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
