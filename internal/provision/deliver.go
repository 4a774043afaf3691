package provision

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"
)

// Outputs is what the cluster's own authority gives to those who take part.
type Outputs struct {
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
// none, or none that lasts for as long as given and is of the root that signs now,
// the first of the authorities: others will soon no longer be trusted.
func (c *Cluster) WantsViewer(authorities string, long time.Duration) bool {
	cert := c.Path(Monitoring, viewerCert)
	return !good(cert, c.Path(Monitoring, viewerKey), long) || !signedBy(cert, authorities)
}

// signedBy tells whether a certificate in a file was signed by the first of some
// authorities, in PEM.
func signedBy(cert, authorities string) bool {
	text, err := os.ReadFile(cert)
	if err != nil {
		return false
	}
	block, _ := pem.Decode(text)
	root, _ := pem.Decode([]byte(authorities))
	if block == nil || root == nil {
		return false
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	signer, err := x509.ParseCertificate(root.Bytes)
	return err == nil && leaf.CheckSignatureFrom(signer) == nil
}

// WantsAdmin tells whether there is no administrator's token to hand out.
func (c *Cluster) WantsAdmin() bool {
	_, err := os.Stat(c.Path(Admin, adminToken))
	return errors.Is(err, fs.ErrNotExist)
}

// Deliver puts into each folder only what its owner needs.
func (c *Cluster) Deliver(t Outputs) error {
	for _, daemon := range slices.Sorted(maps.Keys(c.cfg.Policies)) {
		f, err := c.foreign(daemon)
		if err != nil {
			return err
		}
		files := map[string]string{}
		if daemon != "apid" { // apid has the authority, so it does not join.
			files[joinToken] = t.ManagerJoin + "\n"
		}
		if daemon == "apid" || daemon == "dispatcherd" { // These seal and open secrets.
			key, err := os.ReadFile(c.Path(Secrets, ClusterKey))
			if err != nil {
				return fmt.Errorf("read cluster key: %w", err)
			}
			files[ClusterKey] = string(key)
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
