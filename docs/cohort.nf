// A cohort as a Nextflow process, a shard per task:
//   nextflow run docs/cohort.nf --slides "$PWD/cohort.csv" --out "$PWD/maps" --bundle "$PWD/mclst-bundle" --shards 8 -resume
// Paths are absolute, since the maps are written where they stay: a task that is tried again finds what it finished.
params.shards = 8

process infer {
    cpus 8
    memory '16 GB'
    // 3: some slides failed, and trying again would not mend them. 130-143: the task was ended from outside.
    errorStrategy { task.exitStatus in (130..145) + [6, 104, 175] ? 'retry' : 'finish' }
    maxRetries 2

    input:
    val shard

    output:
    val shard

    script:
    """
    mclst-infer --slides ${params.slides} --out ${params.out} --bundle ${params.bundle} \
        --shard ${shard}/${params.shards} --workers ${task.cpus} || [ \$? -eq 3 ]
    """
}

workflow {
    infer(Channel.of(1..params.shards))
}
