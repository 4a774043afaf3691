package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// initTimeout bounds the making of a cluster.
const initTimeout = time.Minute

// initializer makes a cluster's authority and its first token.
type initializer struct {
	settings daemon.Settings
	keyFile  string
	outDir   string
	again    bool
	out      io.Writer
	// deliver takes what was made, in place of showing it. Nil: it is shown.
	deliver func(context.Context, *ca.Authority, initialized) error
}

// initialized is what a cluster that was made begins with. Admin is empty if
// there is a token already.
type initialized struct{ worker, manager, admin, authorities string }

func initCommand() *cobra.Command {
	i := &initializer{settings: daemon.Settings{StopTimeout: time.Second}}
	cmd := &cobra.Command{
		Use: "init", Short: "Give a cluster its certificate authority and the first tokens", Args: cobra.NoArgs,
		Long: `Give a cluster its certificate authority, the tokens to join with, and the first administrator's token, which is shown only
once. From then on every caller needs a certificate or a token.

It stores them in Consul. The authority's key and the join tokens are sealed with the key in --cluster-key-file, which is
created if it is missing and which apid needs as well. Keep a copy of it in a safe place. Running it again changes nothing
and shows the join tokens again.
`,
		Example: `  muster init --cluster-key-file /etc/muster/cluster.key
  muster apid --cluster-key-file /etc/muster/cluster.key
  muster schedulerd --join apid:7700 --join-token-file manager.token
  muster workerd --join apid:7700 --join-token-file worker.token --dispatcher dispatcherd:7704`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i.out = cmd.OutOrStdout()
			if err := load(cmd, &i.settings); err != nil {
				return err
			}
			if i.keyFile == "" {
				return &cli.UsageError{Err: errors.New("--cluster-key-file is needed: the file with the key that the authority is sealed with")}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), initTimeout)
			defer cancel()
			return i.run(ctx)
		},
	}
	fs := cmd.Flags()
	i.settings.AddStoreFlags(fs)
	i.settings.AddLogFlags(fs)
	fs.StringVar(&i.keyFile, "cluster-key-file", "", "file with the key that seals the authority; created if missing")
	fs.StringVar(&i.outDir, "out", "", "write worker.token, manager.token, admin.token and ca.pem to this directory instead of showing them")
	fs.BoolVar(&i.again, "new-admin-token", false, "create another administrator token, if all were lost")
	return cmd
}

func (i *initializer) run(ctx context.Context) error {
	log, err := i.settings.Log()
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	kv, err := i.settings.OpenConsul(log)
	if err != nil {
		return err
	}
	defer func() { _ = kv.Close() }()
	keys, err := seal.LoadKeys(i.keyFile)
	if errors.Is(err, os.ErrNotExist) {
		keys, err = seal.MakeKeys(i.keyFile)
	}
	if err != nil {
		return fmt.Errorf("--cluster-key-file: %w", err)
	}
	authority, err := ca.New(ca.Config{KV: kv, Prefix: i.settings.Prefix, Keys: keys, Lifetime: ca.DefaultLifetime, Logger: log})
	if err != nil {
		return err
	}
	tokens := state.NewTables().Tokens
	st, err := store.New(store.Options{KV: kv, Prefix: i.settings.Prefix, Logger: log}, tokens)
	if err != nil {
		return err
	}
	return daemon.RunTasks(ctx,
		daemon.Task{Name: "authority", Run: authority.Run},
		daemon.Task{Name: "store", Run: st.Run},
		daemon.Task{Name: "init", Run: func(ctx context.Context) error { return i.make(ctx, authority, st, tokens, log) }})
}

func (i *initializer) make(ctx context.Context, authority *ca.Authority, st *store.Store, tokens *store.Table[*recordv1.Token], log *zap.Logger) error {
	made, err := authority.Init(ctx)
	if err != nil {
		return err
	}
	admin, err := i.firstToken(ctx, st, tokens)
	if err != nil {
		return err
	}
	join, err := authority.JoinTokens(ctx)
	if err != nil {
		return err
	}
	pem, err := authority.Certificates(ctx)
	if err != nil {
		return err
	}
	log.Debug("cluster has an authority", zap.Bool("made", made))
	if i.deliver != nil {
		return i.deliver(ctx, authority, initialized{worker: join.Worker, manager: join.Manager, admin: admin, authorities: string(pem)})
	}
	if i.outDir != "" {
		return i.write(map[string]string{"worker.token": join.Worker, "manager.token": join.Manager, "admin.token": admin, "ca.pem": string(pem)})
	}
	_, err = fmt.Fprintf(i.out, "To join, a worker needs\n\n  %s\n\nand a manager daemon\n\n  %s\n\n", join.Worker, join.Manager)
	if admin != "" && err == nil {
		_, err = fmt.Fprintf(i.out, "The token of the first administrator, which is shown this once (muster login --token):\n\n  %s\n\n", admin)
	}
	return err
}

// firstToken makes the token of an administrator, if there is none yet or it is
// asked for; else it returns "".
func (i *initializer) firstToken(ctx context.Context, st *store.Store, tokens *store.Table[*recordv1.Token]) (string, error) {
	if err := st.Ready(ctx); err != nil {
		return "", fmt.Errorf("read tokens: %w", err)
	}
	id, token, hash := auth.NewToken()
	made := false
	err := st.Update(ctx, func(tx *store.Tx) error {
		there := false
		for range tokens.Scan(tx, "") {
			there = true
			break
		}
		if made = !there || i.again; made {
			tokens.Put(tx, id, &recordv1.Token{Name: "admin", Role: authv1.Role_ADMIN, Hash: hash, CreatedAt: time.Now().UnixMilli(), CreatedBy: "muster init"})
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("keep token: %w", err)
	}
	if !made {
		return "", nil
	}
	return token, nil
}

// write writes what there is into files that their owner alone can read.
func (i *initializer) write(files map[string]string) error {
	if err := os.MkdirAll(i.outDir, 0o700); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	for name, content := range files {
		if content == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(i.outDir, name), []byte(content+"\n"), 0o600); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
	}
	return nil
}
