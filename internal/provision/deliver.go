package provision

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"
)

// Told is what the cluster's own authority gives to those who take part.
type Told struct {
	// ManagerJoin and WorkerJoin are the tokens to join with.
	ManagerJoin, WorkerJoin string
	// Admin is the first administrator's token; empty if it is known already.
	Admin string
	// Authorities are whom to trust, in PEM.
	Authorities string
	// ViewerCert and ViewerKey are for what fetches metrics; empty if those that it
	// has are to stay.
	ViewerCert, ViewerKey string
}

const (
	viewerCert = "viewer.pem"
	viewerKey  = "viewer-key.pem"
	adminToken = "admin.token"
)

// WantsViewer tells whether what fetches metrics needs a certificate, for it has
// none, or none that lasts for as long as given.
func (c *Cluster) WantsViewer(long time.Duration) bool {
	return !good(c.Path(Monitoring, viewerCert), c.Path(Monitoring, viewerKey), long)
}

// WantsAdmin tells whether there is no administrator's token to hand out.
func (c *Cluster) WantsAdmin() bool {
	_, err := os.Stat(c.Path(Admin, adminToken))
	return errors.Is(err, fs.ErrNotExist)
}

// Deliver puts into each folder what its owner needs, and no more.
func (c *Cluster) Deliver(t Told) error {
	for _, daemon := range slices.Sorted(maps.Keys(c.cfg.Policies)) {
		f, err := c.foreign(daemon)
		if err != nil {
			return err
		}
		files := map[string]string{joinToken: t.ManagerJoin + "\n"}
		if daemon == "apid" {
			// It has the authority, so it joins nobody.
			key, err := os.ReadFile(c.Path(Secrets, ClusterKey))
			if err != nil {
				return fmt.Errorf("read cluster key: %w", err)
			}
			files = map[string]string{ClusterKey: string(key)}
		}
		if err := f.write(files); err != nil {
			return err
		}
	}
	// Workers are root, where they run.
	worker, err := c.private(Worker)
	if err != nil {
		return err
	}
	if err := worker.write(map[string]string{joinToken: t.WorkerJoin + "\n"}); err != nil {
		return err
	}
	monitoring, err := c.foreign(Monitoring)
	if err != nil {
		return err
	}
	files := map[string]string{"ca.pem": t.Authorities}
	if t.ViewerCert != "" {
		files[viewerCert], files[viewerKey] = t.ViewerCert, t.ViewerKey
	}
	if err := monitoring.write(files); err != nil {
		return err
	}
	admin, err := c.private(Admin)
	if err != nil {
		return err
	}
	files = map[string]string{"ca.pem": t.Authorities}
	if t.Admin != "" {
		files[adminToken] = t.Admin + "\n"
	}
	return admin.write(files)
}
