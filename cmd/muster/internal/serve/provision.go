package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/compose/consul/policies"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/provision"
)

// setUpTimeout bounds how long servers that have just been started may take until
// they are one Consul.
const setUpTimeout = 3 * time.Minute

// provisioner is told what to provision.
type provisioner struct {
	dir, owner string
	servers    int
}

func (p *provisioner) add(fs *pflag.FlagSet) {
	fs.StringVar(&p.dir, "dir", "", "directory to write to, with one folder per daemon")
	fs.StringVar(&p.owner, "owner", "", "UID:GID that Consul and the manager daemons run as; it becomes the owner of their folders")
	fs.IntVar(&p.servers, "consul-servers", 3, "number of Consul servers")
}

// cluster is what the flags say.
func (p *provisioner) cluster() (*provision.Cluster, error) {
	rules, err := policies.All()
	if err != nil {
		return nil, err
	}
	cfg := provision.Config{Dir: p.dir, Servers: p.servers, Policies: rules}
	if p.owner != "" {
		user, group, _ := strings.Cut(p.owner, ":")
		u, uerr := strconv.ParseUint(user, 10, 31)
		g, gerr := strconv.ParseUint(group, 10, 31)
		if err := errors.Join(uerr, gerr); err != nil {
			return nil, &cli.UsageError{Err: fmt.Errorf("--owner: %q is not UID:GID: %w", p.owner, err)}
		}
		cfg.Owner = &provision.Owner{User: int(u), Group: int(g)}
	}
	c, err := provision.New(cfg)
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return c, nil
}

func provisionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "provision", Short: "Create all files and secrets of a cluster with its own Consul, one folder per daemon",
		Long: `Create all files and secrets of a cluster with its own Consul, one folder per daemon, for tools that deploy Muster, such as the
Compose file. Give each daemon its own folder only. Running it again keeps what is there, creates what is missing, and updates
the Consul policies to those of this version.`,
		Example: `  muster provision consul --dir /provision
  muster provision cluster --dir /provision --consul-address consul-1:8501`,
	}
	cmd.AddCommand(provisionConsul(), provisionCluster())
	return cmd
}

func provisionConsul() *cobra.Command {
	var p provisioner
	cmd := &cobra.Command{
		Use: "consul", Short: "Before Consul starts: create its authority, certificates, gossip key, settings and tokens", Args: cobra.NoArgs,
		Long: `Create what Consul's servers need before they start: an authority, certificates, a gossip key, and settings with default-deny
ACLs. The servers are named consul-1, consul-2 and so on, and must reach each other under these names. Mount each server's folder
as its /consul/data and run it with -config-file=/consul/data/consul.json.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := daemon.Load(cmd.Flags(), os.LookupEnv); err != nil {
				return &cli.UsageError{Err: err}
			}
			c, err := p.cluster()
			if err != nil {
				return err
			}
			return c.Files()
		},
	}
	p.add(cmd.Flags())
	return cmd
}

func provisionCluster() *cobra.Command {
	var p provisioner
	s := daemon.Settings{StopTimeout: time.Second}
	cmd := &cobra.Command{
		Use: "cluster", Short: "Once Consul runs: create its policies and tokens, the cluster's authority, and join tokens", Args: cobra.NoArgs,
		Long: `Wait for a provisioned Consul, create a policy and a token in it for each daemon and the cluster's authority (see muster
init), and put into each folder what its daemon needs to join. The folder admin contains the first administrator's token and
ca.pem, and monitoring a viewer's certificate for fetching metrics, which is renewed after half of its lifetime.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd, &s); err != nil {
				return err
			}
			c, err := p.cluster()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), setUpTimeout)
			defer cancel()
			return p.run(ctx, c, s, cmd.OutOrStdout())
		},
	}
	p.add(cmd.Flags())
	s.AddStoreFlags(cmd.Flags())
	s.AddLogFlags(cmd.Flags())
	return cmd
}

func (p *provisioner) run(ctx context.Context, c *provision.Cluster, s daemon.Settings, out io.Writer) error {
	s.Consul.TLS = true
	if s.Consul.CAFile == "" {
		s.Consul.CAFile = c.Path(provision.Secrets, provision.ConsulCA)
	}
	if s.Consul.Token == "" && s.Consul.TokenFile == "" {
		s.Consul.TokenFile = c.Path(provision.Secrets, provision.ManagementToken)
	}
	clients, err := consulClients(&s.Consul)
	if err != nil {
		return err
	}
	if err := c.ACL(ctx, clients); err != nil {
		return err
	}
	i := &initializer{settings: s, keyFile: c.Path(provision.Secrets, provision.ClusterKey), again: c.WantsAdmin(), out: out}
	i.deliver = func(ctx context.Context, authority *ca.Authority, made initialized) error {
		told := provision.Outputs{ManagerJoin: made.manager, WorkerJoin: made.worker, Admin: made.admin, Authorities: made.authorities}
		if c.WantsViewer(made.authorities, authority.Lifetime()/2) {
			var err error
			if told.ViewerCert, told.ViewerKey, err = viewer(ctx, authority); err != nil {
				return err
			}
		}
		return c.Deliver(told)
	}
	return i.run(ctx)
}

// consulClients returns a client of each server.
func consulClients(s *daemon.ConsulSettings) ([]*api.Client, error) {
	token, err := s.ReadToken()
	if err != nil {
		return nil, err
	}
	var clients []*api.Client
	for address := range strings.SplitSeq(s.Address, ",") {
		client, err := api.NewClient(&api.Config{
			Address: strings.TrimSpace(address), Scheme: "https", Token: token, Datacenter: s.Datacenter,
			TLSConfig: api.TLSConfig{CAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile},
		})
		if err != nil {
			return nil, fmt.Errorf("consul at %s: %w", address, err)
		}
		clients = append(clients, client)
	}
	return clients, nil
}

// viewer makes a key, and has the authority certify it for what fetches metrics.
func viewer(ctx context.Context, authority *ca.Authority) (certificate, key string, err error) {
	secret, text, err := ca.NewRequest()
	if err != nil {
		return "", "", err
	}
	request, err := ca.ParseRequest(text)
	if err != nil {
		return "", "", fmt.Errorf("make request of viewer: %w", err)
	}
	issued, err := authority.Issue(ctx, auth.Identity{Role: authv1.Role_VIEWER, Name: "monitoring"}, request, 0)
	if err != nil {
		return "", "", err
	}
	return string(issued.Certificate), string(secret), nil
}
