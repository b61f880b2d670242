// Command vcsim serves VMware's own simulated vCenter (package simulator of govmomi, as Debian
// ships it) over TLS on 127.0.0.1, as a counterpart that Gantry's developers did not write.
//
// In: how many virtual machines, whether a standalone ESXi. Out: one line on standard output with
// the port and the SHA-256 of its certificate. It runs until it is killed; its datastores are
// folders in TMPDIR.
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"net/url"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	machines := flag.Int("machines", 2, "virtual machines in each resource pool")
	esx := flag.Bool("esx", false, "a standalone ESXi instead of a vCenter")
	flag.Parse()

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Machine = *machines
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.TLS = new(tls.Config)
	model.Service.Listen = &url.URL{
		Host: "127.0.0.1:0",
		User: url.UserPassword("gantry", "correct horse"),
	}
	server := model.Service.NewServer()
	fmt.Printf("listening %s %x\n", server.URL.Port(), sha256.Sum256(server.Certificate().Raw))
	select {}
}
