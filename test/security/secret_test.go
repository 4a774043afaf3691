package security_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// canary is the data of secrets. It stands in no other text.
const canary = "canary-6e1f0a94c2"

// holds reports whether bytes contain the canary, plain or in base64 at any offset.
func holds(b []byte) bool {
	if bytes.Contains(b, []byte(canary)) {
		return true
	}
	for shift := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + canary))
		// The first and the last characters depend on what is beside it.
		if bytes.Contains(b, []byte(encoded[4:len(encoded)-4])) {
			return true
		}
	}
	return false
}

// TestSecretIsFoundNowhereInTheClear creates, rotates and reseals secrets over a real
// Consul, and searches all that the cluster has written for their data.
func TestSecretIsFoundNowhereInTheClear(t *testing.T) {
	if !holds([]byte("a"+canary)) || !holds([]byte(base64.StdEncoding.EncodeToString([]byte("ab"+canary+"c")))) {
		t.Fatal("the search does not find the canary")
	}
	c := start(t)
	admin := musterv1.NewControlServiceClient(c.dial(c.api, nil))
	viewer, err := admin.CreateToken(c.with(c.admin), &musterv1.CreateTokenRequest{Name: "vera", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	small, err := admin.CreateSecret(c.with(c.admin), &musterv1.CreateSecretRequest{Spec: &musterv1.SecretSpec{Name: "small", Data: []byte(canary)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CreateSecret(c.with(c.admin), &musterv1.CreateSecretRequest{Spec: &musterv1.SecretSpec{Name: "large", Data: bytes.Repeat([]byte(canary), 20_000)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RotateSecret(c.with(c.admin), &musterv1.RotateSecretRequest{Secret: "small", Version: small.Secret.Meta.Version, Data: []byte(canary + "-2")}); err != nil {
		t.Fatal(err)
	}
	// The content of a stack holds what its files say.
	container := &musterv1.ContainerSpec{Image: "nginx", Env: []string{"PASSWORD=" + canary}}
	stacked := &musterv1.StackSpec{Name: "shop", Source: "PASSWORD: " + canary, Services: []*musterv1.ServiceSpec{{
		Name: "shop_web", Labels: map[string]string{musterv1.StackLabel: "shop"}, Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: container}},
	}}}
	if _, err := admin.CreateStack(c.with(c.admin), &musterv1.CreateStackRequest{Spec: stacked}); err != nil {
		t.Fatal(err)
	}
	// So does the environment of a service, and what it pulls its image with.
	service, err := admin.CreateService(c.with(c.admin), &musterv1.CreateServiceRequest{Spec: &musterv1.ServiceSpec{Name: "web", Task: &musterv1.TaskSpec{
		Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
			Image: "nginx", Env: []string{"PASSWORD=" + canary},
			PullOptions: &musterv1.PullOptions{RegistryAuth: base64.StdEncoding.EncodeToString([]byte(`{"password":"` + canary + `"}`))},
		}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if env := service.Service.Spec.Task.GetContainer().Env; len(env) != 1 || env[0] != "PASSWORD="+canary {
		t.Errorf("the environment is shown as %v", env)
	}
	// A mistake must not repeat the data either.
	_, err = admin.CreateSecret(c.with(c.admin), &musterv1.CreateSecretRequest{Spec: &musterv1.SecretSpec{Name: "a/b", Data: []byte(canary)}})
	if status.Code(err) != codes.InvalidArgument || holds([]byte(err.Error())) {
		t.Errorf("wrong name: %v", err)
	}
	if _, err := admin.ResealCluster(c.with(c.admin), &musterv1.ResealClusterRequest{}); err != nil {
		t.Errorf("reseal: %v", err)
	}

	// A viewer sees that there are secrets, and neither reads nor writes data.
	list, err := admin.ListSecrets(c.with(viewer.Secret), &musterv1.ListSecretsRequest{})
	if err != nil || len(list.Secrets) != 2 || holds([]byte(list.String())) {
		t.Errorf("list as viewer: %v, %v", list, err)
	}
	for _, token := range []string{viewer.Secret, c.admin} {
		got, err := admin.GetSecret(c.with(token), &musterv1.GetSecretRequest{Secret: "small"})
		if err != nil || len(got.Secret.Spec.Data) > 0 || holds([]byte(got.String())) {
			t.Errorf("get: %v, %v", got, err)
		}
	}
	_, err = admin.RotateSecret(c.with(viewer.Secret), &musterv1.RotateSecretRequest{Secret: "small", Version: 1, Data: []byte("x")})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("rotate as viewer: %v", err)
	}

	// A viewer sees that there is a stack, and an operator what it holds.
	operator, err := admin.CreateToken(c.with(c.admin), &musterv1.CreateTokenRequest{Name: "oscar", Role: "operator"})
	if err != nil {
		t.Fatal(err)
	}
	seen, err := admin.GetStack(c.with(viewer.Secret), &musterv1.GetStackRequest{Stack: "shop"})
	if err != nil || holds([]byte(seen.String())) || seen.Stack.Revision.By != "admin admin" {
		t.Errorf("stack as viewer: %v, %v", seen, err)
	}
	_, err = admin.GetStackRevision(c.with(viewer.Secret), &musterv1.GetStackRevisionRequest{Stack: "shop"})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("content of stack as viewer: %v", err)
	}
	content, err := admin.GetStackRevision(c.with(operator.Secret), &musterv1.GetStackRevisionRequest{Stack: "shop"})
	if err != nil || content.Spec.Source != stacked.Source {
		t.Errorf("content of stack as operator: %v, %v", content, err)
	}

	client, err := api.NewClient(&api.Config{Address: c.store[1]})
	if err != nil {
		t.Fatal(err)
	}
	pairs, _, err := client.KV().List("", nil)
	if err != nil || len(pairs) == 0 {
		t.Fatalf("%d pairs in Consul, %v", len(pairs), err)
	}
	sealed := 0
	for _, p := range pairs {
		if strings.HasPrefix(p.Key, "muster/sealedblobs/") {
			sealed += len(p.Value)
		}
		if holds(p.Value) {
			t.Errorf("Consul's key %s holds the data", p.Key)
		}
	}
	if sealed < 20_000*len(canary) {
		t.Errorf("Consul holds %d sealed bytes: is the data elsewhere?", sealed)
	}
	snapshot, _, err := client.Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := gzip.NewReader(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(unpacked); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil || holds(content) {
			t.Errorf("%s of the backup holds the data (%v)", header.Name, err)
		}
	}
	if metrics := c.metrics(c.user(authv1.Role_VIEWER, 0)); len(metrics) == 0 || holds(metrics) {
		t.Errorf("%d bytes of metrics; they hold the data: %v", len(metrics), holds(metrics))
	}
	err = filepath.WalkDir(c.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if holds(content) {
			t.Errorf("%s holds the data", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
