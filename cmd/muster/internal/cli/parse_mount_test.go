package cli

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestParseMount reads every option that Docker's --mount has.
func TestParseMount(t *testing.T) {
	t.Parallel()
	relative, err := filepath.Abs("./conf")
	if err != nil {
		t.Fatal(err)
	}
	for v, want := range map[string]*musterv1.Mount{
		"type=bind,source=/a,target=/b,readonly": {Type: musterv1.Mount_BIND, Source: "/a", Target: "/b", ReadOnly: true},
		"src=data,dst=/b":                        {Type: musterv1.Mount_VOLUME, Source: "data", Target: "/b"},
		"type=bind,destination=/b,ro=false":      {Type: musterv1.Mount_BIND, Target: "/b"},
		"TYPE=Bind,src=./conf,target=/b,consistency=cached": {
			Type: musterv1.Mount_BIND, Source: relative, Target: "/b", Consistency: "cached",
		},
		"type=bind,src=/a,target=/b,bind-propagation=rshared,bind-nonrecursive,bind-create-src=true": {
			Type: musterv1.Mount_BIND, Source: "/a", Target: "/b", BindOptions: &musterv1.BindOptions{Propagation: "rshared", NonRecursive: true, CreateMountpoint: true},
		},
		"type=bind,src=/a,target=/b,bind-recursive=enabled":  {Type: musterv1.Mount_BIND, Source: "/a", Target: "/b"},
		"type=bind,src=/a,target=/b,bind-recursive=disabled": {Type: musterv1.Mount_BIND, Source: "/a", Target: "/b", BindOptions: &musterv1.BindOptions{NonRecursive: true}},
		"type=bind,src=/a,target=/b,ro,bind-recursive=writable": {
			Type: musterv1.Mount_BIND, Source: "/a", Target: "/b", ReadOnly: true, BindOptions: &musterv1.BindOptions{ReadOnlyNonRecursive: true},
		},
		"type=bind,src=/a,target=/b,ro,bind-recursive=readonly": {
			Type: musterv1.Mount_BIND, Source: "/a", Target: "/b", ReadOnly: true, BindOptions: &musterv1.BindOptions{ReadOnlyForceRecursive: true},
		},
		`src=data-{{.Task.Slot}},dst=/b,volume-driver=local,volume-opt=type=nfs,"volume-opt=o=addr=10.0.0.1,rw",volume-label=a=b=c,volume-label=d,volume-nocopy,volume-subpath=x/y`: {
			Type: musterv1.Mount_VOLUME, Source: "data-{{.Task.Slot}}", Target: "/b", VolumeOptions: &musterv1.VolumeOptions{
				NoCopy: true, Labels: map[string]string{"a": "b=c", "d": ""}, Subpath: "x/y",
				DriverConfig: &musterv1.Driver{Name: "local", Options: map[string]string{"type": "nfs", "o": "addr=10.0.0.1,rw"}},
			},
		},
		"type=tmpfs,target=/b,tmpfs-size=64m,tmpfs-mode=1770,tmpfs-options=exec": {
			Type: musterv1.Mount_TMPFS, Target: "/b", TmpfsOptions: &musterv1.TmpfsOptions{SizeBytes: 64 << 20, Mode: 0o1770, Options: "exec"},
		},
	} {
		got, err := parseMount(v)
		if err != nil {
			t.Errorf("parseMount(%q): %v", v, err)
			continue
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("parseMount(%q) (-want +got):\n%s", v, diff)
		}
	}
}

func TestParseMountRefusesWhatItCannotRead(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]string{
		"":                                               "--mount",
		"type=floppy,target=/b":                          "want one of bind, volume, tmpfs",
		"type=image,src=nginx,target=/b":                 "images cannot be mounted",
		"target=/b,image-subpath=x":                      "images cannot be mounted",
		"target=/b,readonly=perhaps":                     "readonly",
		"src=data":                                       "target is missing",
		"target=/b,volume-driver":                        "want volume-driver=VALUE",
		"target=/b,volume-opt==x":                        "want volume-opt=key=value",
		"target=/b,floppy=a":                             `there is no "floppy"`,
		"type=tmpfs,target=/b,tmpfs-mode=9":              "octal",
		"type=tmpfs,target=/b,tmpfs-mode=1":              "",
		"type=tmpfs,target=/b,tmpfs-size=much":           "64m",
		"type=bind,src=/a,target=/b,bind-recursive=some": "want one of enabled, disabled, writable, readonly",
		`src=data,target=/b,volume-opt="a`:               "in quotes",
	} {
		_, err := parseMount(v)
		if want == "" {
			if err != nil {
				t.Errorf("parseMount(%q): %v", v, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseMount(%q) = %v, want an error with %q", v, err, want)
		}
	}
}
