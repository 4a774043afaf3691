package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/atomicfile"
)

// contexts are the clusters that a user has logged in to, in a file that only
// this user can read.
type contexts struct {
	Current  string             `json:"current"`
	Contexts map[string]*target `json:"contexts"`
}

// target is one cluster, and who one is there.
type target struct {
	Address string `json:"address"`
	// CA is PEM; empty: the authorities of the machine.
	CA    string `json:"ca,omitempty"`
	Token string `json:"token,omitempty"`
	// Certificate and Key are PEM, of one who comes with these in place of a token.
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
	// known says that it is a context, so that it has TLS whatever else is said.
	known bool
}

func contextsPath() (string, error) {
	if path := os.Getenv("MUSTER_CONTEXTS_FILE"); path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the directory for contexts (MUSTER_CONTEXTS_FILE): %w", err)
	}
	return filepath.Join(dir, "muster", "contexts.json"), nil
}

// loadContexts reads the file. None is no error: there are no contexts.
func loadContexts() (*contexts, error) {
	c := &contexts{Contexts: map[string]*target{}}
	path, err := contextsPath()
	if err != nil {
		// Without a home there are none.
		return c, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("read contexts from %s: %w", path, err)
	}
	if c.Contexts == nil {
		c.Contexts = map[string]*target{}
	}
	return c, nil
}

func (c *contexts) save() error {
	path, err := contextsPath()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep contexts: %w", err)
	}
	if err := atomicfile.Write(path, append(b, '\n')); err != nil {
		return fmt.Errorf("keep contexts: %w", err)
	}
	return nil
}

// target returns where to go: what flags and the environment say, or else the
// context that is named, or else the current one.
func (c *CLI) target() (*target, error) {
	t := &target{Address: c.address, Token: c.token}
	all, err := loadContexts()
	if err != nil {
		return nil, err
	}
	name := c.context
	if name == "" && t.Address == "" && t.Token == "" && c.tls == (tlsFlags{}) {
		name = all.Current
	}
	if name != "" {
		known, ok := all.Contexts[name]
		if !ok {
			return nil, usage("there is no context %q; `muster context ls` shows them", name)
		}
		chosen := *known
		chosen.known = true
		if t.Address != "" {
			chosen.Address = t.Address
		}
		if t.Token != "" {
			chosen.Token = t.Token
		}
		t = &chosen
	}
	if t.Address == "" {
		t.Address = DefaultAddress
	}
	c.address = t.Address
	return t, nil
}

func (c *CLI) login() *cobra.Command {
	var (
		name, token, caFile string
		systemCA            bool
	)
	cmd := &cobra.Command{
		Use: "login ADDRESS", Short: "Log in to a cluster and save it as a context", Args: cobra.ExactArgs(1),
		Long: `Log in to a cluster with an API token or a client certificate, and save it as a context, which later commands use. ADDRESS
can list several replicas of apid, separated by commas; the first that answers is used.

The context is stored in a file that only you can read (MUSTER_CONTEXTS_FILE; default: muster/contexts.json in your
configuration directory). Without --token the token is read from standard input, unless --tls-cert-file and --tls-key-file
name a certificate and its key, which are stored instead.`,
		Example: `  muster login apid.example:7700 --ca-file ca.pem < admin.token
  muster login apid.example:7700 --ca-file ca.pem --tls-cert-file ada.pem --tls-key-file ada-key.pem
  muster service ls`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (caFile == "") != systemCA {
				return usage("--ca-file names the cluster's authority (ca.pem of muster init); or --system-ca trusts those of this machine")
			}
			t := &target{Address: args[0], Token: token, known: true}
			if err := checkAddresses(t.Address); err != nil {
				return usage("%w", err)
			}
			if err := c.identify(t); err != nil {
				return err
			}
			var err error
			if t.CA, err = readPEM("ca-file", caFile); err != nil {
				return err
			}
			// The first call shows whether the cluster accepts the user.
			if c.conn, err = c.dial(t); err != nil {
				return err
			}
			c.address = t.Address
			if _, err := call(c, cmd, api.GetCluster, &musterv1.GetClusterRequest{}); err != nil {
				return err
			}
			all, err := loadContexts()
			if err != nil {
				return err
			}
			all.Contexts[name], all.Current = t, name
			if err := all.save(); err != nil {
				return err
			}
			c.printf("context %s is in use: %s\n", name, t.Address)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "default", "name of the context")
	fs.StringVar(&token, "token", "", "API token (default: read from standard input, where other users cannot see it)")
	fs.StringVar(&caFile, "ca-file", "", "PEM file of the cluster's authority")
	fs.BoolVar(&systemCA, "system-ca", false, "trust the authorities of this machine and verify the host name")
	return cmd
}

// identify gives a target the token or the certificate that the user logs in with.
func (c *CLI) identify(t *target) (err error) {
	switch {
	case c.tls.certFile != "" && t.Token != "":
		return usage("give --token, or --tls-cert-file and --tls-key-file, not both")
	case c.tls.certFile != "":
		if t.Certificate, err = readPEM("tls-cert-file", c.tls.certFile); err != nil {
			return err
		}
		t.Key, err = readPEM("tls-key-file", c.tls.keyFile)
		return err
	case t.Token == "":
		if _, err := fmt.Fscanln(c.In, &t.Token); err != nil {
			return usage("there is no token on standard input: %w", err)
		}
	}
	return nil
}

// readPEM reads the file that a flag names, if it names one.
func readPEM(flag, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return "", usage("--%s: %w", flag, err)
	}
	return string(pem), nil
}

func (c *CLI) contexts() *cobra.Command {
	ls := &cobra.Command{
		Use: "ls", Short: "List contexts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := loadContexts()
			if err != nil {
				return err
			}
			if len(all.Contexts) == 0 {
				cmd.PrintErrln("there is no context yet: `muster login ADDRESS` logs in to a cluster and keeps it as one")
			}
			for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
				mark := " "
				if name == all.Current {
					mark = "*"
				}
				c.printf("%s %s\t%s\n", mark, name, all.Contexts[name].Address)
			}
			return nil
		},
	}
	change := func(use, short string, do func(*contexts, string)) *cobra.Command {
		return &cobra.Command{
			Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				all, err := loadContexts()
				if err != nil {
					return err
				}
				if all.Contexts[args[0]] == nil {
					return usage("there is no context %q; `muster context ls` shows them", args[0])
				}
				do(all, args[0])
				return all.save()
			},
		}
	}
	return group("context", "Manage contexts: the clusters that you have logged in to", ls,
		change("use", "Use a context from now on", func(all *contexts, name string) { all.Current = name }),
		change("rm", "Forget a context, and its token", func(all *contexts, name string) {
			if delete(all.Contexts, name); all.Current == name {
				all.Current = ""
			}
		}))
}
