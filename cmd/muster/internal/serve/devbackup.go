package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/atomicfile"
	"github.com/musterhq/muster/internal/kv/embedded"
)

// storeFile is the embedded store's file in the directory of a cluster.
const storeFile = "store.db"

// backupPath is where a cluster in one process gives copies of its store away,
// beside its metrics.
const backupPath = "/backup"

// backupTimeout bounds a copy of a store.
const backupTimeout = 10 * time.Minute

// withBackup serves copies of the store beside what else there is.
func withBackup(store *embedded.KV, log *zap.Logger, next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("GET "+backupPath, func(w http.ResponseWriter, _ *http.Request) {
		began := false
		err := store.Backup(w, func(size int64) {
			began = true
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		})
		switch {
		case err == nil:
		case !began:
			http.Error(w, err.Error(), http.StatusConflict)
		default:
			// Who gets less than was promised knows that it is not all.
			log.Warn("backup was cut short", zap.Error(err))
			panic(http.ErrAbortHandler)
		}
	})
	return mux
}

func backupCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Back up the store of a running muster dev", Args: cobra.ExactArgs(1),
		Long: `Back up the store of a running cluster in one process (muster dev --data-dir) to a file. The backup is consistent.

To back up a cluster on Consul, use consul snapshot save; see docs/backup.md.`,
		Example: "  muster dev backup muster-$(date +%F).db",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), backupTimeout)
			defer cancel()
			return atomicfile.WriteFunc(args[0], func(to *os.File) error { return fetch(ctx, "http://"+listen+backupPath, to) })
		},
	}
	cmd.Flags().StringVar(&listen, "ops-listen", fmt.Sprintf("127.0.0.1:%d", apidPort+1000), "the cluster's own --ops-listen")
	return cmd
}

func restoreCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Restore a backup into the data directory of a stopped muster dev", Args: cobra.ExactArgs(1),
		Long: `Restore a backup made by muster dev backup into the data directory of a stopped cluster.

The cluster is then as it was when the backup was made: its workers stop tasks that the backup does not contain and start
those that are missing. An existing store is not overwritten: move it away first.`,
		Example: "  muster dev restore muster-2026-03-01.db --data-dir ~/.muster && muster dev --data-dir ~/.muster",
		RunE: func(_ *cobra.Command, args []string) error {
			if dir == "" {
				return &cli.UsageError{Err: errors.New("--data-dir is needed: the cluster's directory")}
			}
			return restoreStore(args[0], dir)
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "directory of the cluster")
	return cmd
}

// fetch writes what an address answers with.
func fetch(ctx context.Context, url string, to io.Writer) error {
	resp, err := get(ctx, http.DefaultClient, url)
	if err != nil {
		return fmt.Errorf("ask the cluster for its store: %w (does `muster dev` run, with this --ops-listen?)", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("the cluster gives no copy of its store away: %s", said)
	}
	if _, err := io.Copy(to, resp.Body); err != nil {
		return fmt.Errorf("copy the store: %w", err)
	}
	return nil
}

// restoreStore copies a store into a cluster's directory, and sees that it opens.
func restoreStore(from, dir string) error {
	to := filepath.Join(dir, storeFile)
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is there already; move it away first", to)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if err := atomicfile.WriteFunc(to, func(w *os.File) error { _, err := io.Copy(w, file); return err }); err != nil {
		return err
	}
	store, err := embedded.Open(embedded.Config{Path: to})
	if err != nil {
		return errors.Join(fmt.Errorf("%s is not a backup of a store: %w", from, err), os.Remove(to))
	}
	return store.Close()
}
