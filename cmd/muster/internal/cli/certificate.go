package cli

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/atomicfile"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
)

func (c *CLI) certificates() *cobra.Command {
	return group("certificate", "Issue client certificates to people and programs", c.certificateCreate())
}

// order is what a certificate is asked for with.
type order struct {
	role        string
	lifetime    time.Duration
	out         string
	requestFile string
	context     string
	force       bool
}

func (c *CLI) certificateCreate() *cobra.Command {
	var o order
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Issue a client certificate to a person or a program", Args: cobra.ExactArgs(1),
		Long: `Issue a client certificate to a person or a program, signed by the cluster's own authority. Only administrators can do this.

The key is generated on this machine and stays here: NAME-key.pem beside NAME.pem and ca.pem, readable by their owner only, or all
of them in a context (--save-context). With --request the key stays with its owner: pass a certificate request for an ECDSA P-256
key, of which only the key is used.

A certificate cannot be revoked. It expires after a day (--lifetime), and after at most 30 days.`,
		Example: `  muster certificate create prometheus --role viewer --lifetime 168h --out /etc/prometheus/muster
  muster certificate create ada --role operator --save-context ada
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ada-key.pem -subj /CN=ada -out ada.csr
  muster certificate create ada --role operator --request ada.csr`,
		RunE: func(cmd *cobra.Command, args []string) error { return c.createCertificate(cmd, args[0], &o) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.role, "role", "viewer", "viewer, operator or admin")
	fs.DurationVar(&o.lifetime, "lifetime", 0, "lifetime (default: 24h)")
	fs.StringVar(&o.out, "out", "", "directory for the files (default: the current one, or none with --save-context)")
	fs.StringVar(&o.requestFile, "request", "", "PEM file with a certificate request, so that the key stays with its owner")
	fs.StringVar(&o.context, "save-context", "", "save it as a context with this name, for this cluster")
	fs.BoolVar(&o.force, "force", false, "replace existing files or an existing context")
	return cmd
}

func (o *order) check(name string) error {
	switch {
	case o.lifetime < 0:
		return usage("--lifetime: %v is in the past", o.lifetime)
	case o.requestFile != "" && o.context != "":
		return usage("--save-context: it needs the key, which stays where the request was made")
	}
	// The server would refuse it too, but it is part of a path here.
	if err := auth.ValidName(name); err != nil {
		return usage("%w", err)
	}
	if o.out != "" && strings.EqualFold(name+".pem", sharedFile) {
		return usage("%s.pem is the file of the authorities: choose another name", name)
	}
	if _, err := auth.PersonRole(o.role); err != nil {
		return usage("--role: %w", err)
	}
	return nil
}

// request returns a certificate request, and the key if it is made here.
func (o *order) request() (key, request []byte, err error) {
	if o.requestFile == "" {
		key, request, err = ca.NewRequest()
	} else {
		request, err = os.ReadFile(o.requestFile)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	return key, request, nil
}

func (c *CLI) createCertificate(cmd *cobra.Command, name string, o *order) error {
	if o.out == "" && o.context == "" {
		o.out = "."
	}
	if err := o.check(name); err != nil {
		return err
	}
	all, err := loadContexts()
	if err != nil {
		return err
	}
	if o.context != "" && all.Contexts[o.context] != nil && !o.force {
		return usage("--save-context: there is a context %q already; --force replaces it", o.context)
	}
	key, request, err := o.request()
	if err != nil {
		return err
	}
	files := &outputFiles{dir: o.out, force: o.force, parts: map[string][]byte{name + ".pem": nil, sharedFile: nil}}
	if key != nil {
		files.parts[name+"-key.pem"] = key
	}
	if err := files.free(); err != nil {
		return err
	}
	t, err := c.target()
	if err != nil {
		return err
	}
	if c.conn, err = c.dial(t); err != nil {
		return err
	}
	req := &musterv1.CreateCertificateRequest{Name: name, Role: o.role, Request: string(request)}
	if o.lifetime > 0 {
		req.Lifetime = durationpb.New(o.lifetime)
	}
	resp, err := call(c, cmd, api.CreateCertificate, req)
	if err != nil {
		return err
	}
	if key != nil {
		if _, err := tls.X509KeyPair([]byte(resp.Certificate), key); err != nil {
			return fmt.Errorf("the certificate that was issued: %w", err)
		}
	}
	c.printf("%s %s, until %s\n", o.role, name, resp.ExpiresAt.AsTime().Local().Format(time.DateTime))
	if o.context != "" {
		kept := &target{Address: t.Address, CA: resp.Authorities, Certificate: resp.Certificate, Key: string(key)}
		if t.CA == "" && c.tls.caFile == "" {
			// A user who trusts the authorities of the machine continues to: something in front
			// of apid has a certificate of theirs.
			kept.CA = ""
		}
		all.Contexts[o.context] = kept
		if err := all.save(); err != nil {
			return err
		}
		c.printf("context %s has it: `muster context use %s`\n", o.context, o.context)
	}
	files.parts[name+".pem"], files.parts[sharedFile] = []byte(resp.Certificate), []byte(resp.Authorities)
	return files.write()
}

// outputFiles is files that their owner alone can read, in a directory; none if that
// is "".
type outputFiles struct {
	dir   string
	force bool
	parts map[string][]byte
}

// sharedFile may be there already: it is the same for all users.
const sharedFile = "ca.pem"

// free looks before anything is issued whether there is room for the files.
func (k *outputFiles) free() error {
	for name := range k.parts {
		if k.dir == "" || k.force || name == sharedFile {
			continue
		}
		path := filepath.Join(k.dir, name)
		if _, err := os.Lstat(path); err == nil {
			return usage("%s is there already; --force replaces it", path)
		}
	}
	return nil
}

func (k *outputFiles) write() error {
	if k.dir == "" {
		return nil
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	for name, content := range k.parts {
		if err := atomicfile.Write(filepath.Join(k.dir, name), content); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
	}
	return nil
}
